"""What can go wrong, as a tree.

RootDashError
├── StoreError
│   ├── StoreNotFound    the file is missing, a directory, or cannot be read
│   ├── StoreForeign     it is no root-dash database, or one of another schema version
│   ├── StoreBusy        another process holds it for longer than the timeout
│   ├── StoreFull        its disk is full
│   └── StoreMoved       the file that is recorded to was deleted or replaced
├── Malformed            what came over the wire is no message of ours
├── AlreadyRecorded      another frame or attempt is stored under the same number
└── NotRecorded          the run, layer, step or statistic asked for is not in the store

Bad arguments raise `ValueError` and `TypeError` that name the argument, the value and the rule.
"""


class RootDashError(Exception):
    """Whatever root-dash raises of its own; its text is one sentence for a person."""


class StoreError(RootDashError):
    """The store cannot be opened or used."""


class StoreNotFound(StoreError):
    """The path is missing, is a directory, or cannot be read."""


class StoreForeign(StoreError):
    """The file is not a root-dash database, or has a schema that this version does not know."""


class StoreBusy(StoreError):
    """Another process holds the database for longer than the timeout."""


class StoreFull(StoreError):
    """The disk of the database is full."""


class StoreMoved(StoreError):
    """The file that is recorded to was deleted, or another one has taken its place."""


class Malformed(RootDashError):
    """What came over the wire is no message of ours."""


class AlreadyRecorded(RootDashError):
    """Another frame, or an attempt at another run, is stored under the same number, and stays."""


class NotRecorded(RootDashError):
    """The run, layer, step or statistic asked for is not in the store."""

"""The errors of root-dash, as a tree.

RootDashError
├── StoreError
│   ├── StoreNotFound    the file is missing, is a directory, or cannot be read
│   ├── StoreForeign     the file is no root-dash database, or one of another schema version
│   ├── StoreBusy        another process holds the database for longer than the timeout
│   ├── StoreFull        the disk of the database is full
│   └── StoreMoved       the file that is recorded to was deleted or replaced
├── Malformed            what came over the wire is no message of root-dash
├── AlreadyRecorded      another frame or attempt is stored under the same number
└── NotRecorded          the run, layer, step or statistic asked for is not in the store

A bad argument raises `TypeError` if its type is wrong and `ValueError` if its value is wrong. The message names the
argument, the value and the rule.
"""


class RootDashError(Exception):
    """The base of every error of root-dash. Its text is one sentence for a person."""


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
    """The file that is recorded to was deleted, or another file has taken its place."""


class Malformed(RootDashError):
    """What came over the wire is no message of root-dash."""


class AlreadyRecorded(RootDashError):
    """Another frame, or an attempt at another run, is stored under the same number, and stays."""


class NotRecorded(RootDashError):
    """The run, layer, step or statistic asked for is not in the store."""


def missing_extra(subject: str, package: str, extra: str) -> str:
    """Return the sentence that a subject needs a package, and how to install the extra with the package.

    The command installs from a clone and never by name: on the public index, `root-dash` is another project.
    """
    return f"{subject} needs {package}: run pip install '.[{extra}]' in a clone of root-dash"

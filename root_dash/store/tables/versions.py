"""The versions of the schema: the version of this root-dash, and the errors for other versions.

The version moves for changes that an older root-dash cannot read past. A new statistic is a new column and a new
quantity may be a new table; both appear when a database is opened for writing, and need no new version.
"""

from __future__ import annotations

from root_dash.exceptions import StoreForeign

BASE_VERSION = 3
"""The oldest schema that can be brought up to date. No release wrote an older schema."""

SCHEMA_VERSION = 3
"""The schema of this root-dash."""


def revision(version: int) -> str:
    """Return Alembic's name of a schema version."""
    return f"{version:04d}"


def check_version(location: object, version: int, newest: int = SCHEMA_VERSION) -> None:
    """Check that a database has the newest schema version.

    Raises:
        StoreForeign: the database has another version. The message says what to do.
    """
    if version > newest:
        raise StoreForeign(
            f"{location} was written by a newer root-dash (schema {version}, this one knows {newest}): upgrade"
        )
    if version < BASE_VERSION:
        raise StoreForeign(
            f"{location} has schema {version}, but this root-dash reads no schema before {BASE_VERSION}: "
            f"record to another database"
        )
    if version < newest:
        raise StoreForeign(
            f"{location} has schema {version}, an older one than this root-dash reads ({newest}): "
            f"`root-dash migrate` brings it up to date"
        )

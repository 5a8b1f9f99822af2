"""The message for a package that is not installed because only some users need it."""

from __future__ import annotations


def missing_extra(subject: str, package: str, extra: str) -> str:
    """Say in one sentence that a subject needs a package, and how to install the extra that brings the package.

    The command installs from a clone and never by name: on the public index, `root-dash` is another project.
    """
    return f"{subject} needs {package}: run pip install '.[{extra}]' in a clone of root-dash"

"""What to say where a package that only some need is not installed."""

from __future__ import annotations


def missing_extra(subject: str, package: str, extra: str) -> str:
    """Say in one sentence that a subject needs a package, and how to install the extra that brings the package.

    From a clone, and never by name: on the public index another project has the name `root-dash`.
    """
    return f"{subject} needs {package}: run pip install '.[{extra}]' in a clone of root-dash"

"""A microscope for people who train networks with matrix optimisers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from root_dash.version import __version__

if TYPE_CHECKING:
    from root_dash.monitor.limits.cadence import Cadence
    from root_dash.optim.root import ROOT
    from root_dash.reading import open
    from root_dash.watching import watch

__all__ = ["ROOT", "Cadence", "__version__", "open", "watch"]

# The public names and their modules, which are imported when a name is first used: the server and the dashboard import
# root_dash without torch. No module may bear the name of a function here: once imported, a module root_dash/watch.py
# would be the attribute `root_dash.watch`, and the function could not be reached any more.
_MODULES = {
    "ROOT": "root_dash.optim.root",
    "Cadence": "root_dash.monitor.limits.cadence",
    "open": "root_dash.reading",
    "watch": "root_dash.watching",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from root_dash.exceptions import missing_extra

        raise ImportError(missing_extra(f"root_dash.{name}", "torch", "torch")) from None

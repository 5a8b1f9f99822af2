"""A microscope for people who train networks with matrix optimisers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from root_dash.version import __version__

if TYPE_CHECKING:
    from root_dash.optim.root import ROOT
    from root_dash.watching import open, watch

__all__ = ["ROOT", "__version__", "open", "watch"]


def __getattr__(name: str) -> Any:
    # Lazily, so that the server and the dashboard import root_dash without torch.
    if name == "ROOT":
        try:
            from root_dash.optim.root import ROOT
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            from root_dash.extras import missing_extra

            raise ImportError(missing_extra("root_dash.ROOT", "torch", "torch")) from None
        return ROOT
    if name in ("open", "watch"):
        from root_dash import watching

        return getattr(watching, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

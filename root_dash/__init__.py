"""A microscope for people who train networks with matrix optimisers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from root_dash.optim.root import ROOT
    from root_dash.watching import open, watch

__version__ = "0.1.0"

__all__ = ["ROOT", "__version__", "open", "watch"]


def __getattr__(name: str) -> Any:
    # Lazily, so that the server and the dashboard import root_dash without torch.
    if name == "ROOT":
        try:
            from root_dash.optim.root import ROOT
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ImportError("root_dash.ROOT needs torch: pip install 'root-dash[torch]'") from None
        return ROOT
    if name in ("open", "watch"):
        from root_dash import watching

        return getattr(watching, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

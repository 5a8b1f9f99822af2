"""ROOT, the Robust Orthogonalized OpTimizer (arXiv 2511.20626). torch only; knows nothing of recording."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from root_dash.optim.observation import Observation
    from root_dash.optim.root import ROOT

__all__ = ["ROOT", "Observation"]


def __getattr__(name: str) -> Any:
    # Lazily, so that the dashboard reads `root_dash.coefficients.tables` without torch.
    if name == "ROOT":
        from root_dash.optim.root import ROOT

        return ROOT
    if name == "Observation":
        from root_dash.optim.observation import Observation

        return Observation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""ROOT, the Robust Orthogonalized OpTimizer (arXiv 2511.20626). The package needs torch, and does not record."""

from root_dash.optim.observation import Observation
from root_dash.optim.root import ROOT

__all__ = ["ROOT", "Observation"]

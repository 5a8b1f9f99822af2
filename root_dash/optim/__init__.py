"""ROOT, the Robust Orthogonalized OpTimizer (arXiv 2511.20626). It needs torch alone and knows nothing of recording."""

from root_dash.optim.observation import Observation
from root_dash.optim.root import ROOT

__all__ = ["ROOT", "Observation"]

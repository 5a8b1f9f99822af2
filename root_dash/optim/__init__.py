"""ROOT, the Robust Orthogonalized OpTimizer (arXiv 2511.20626). torch only; knows nothing of recording."""

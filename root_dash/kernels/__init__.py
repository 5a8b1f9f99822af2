"""Triton kernels, each beside the check that says if a tensor suits it."""

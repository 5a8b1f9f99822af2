"""Orthogonalization by a Newton-Schulz iteration: from a matrix toward its polar factor."""

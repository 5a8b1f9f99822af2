"""Quantities that come with the spectra: singular values, and the norms of rows and columns."""

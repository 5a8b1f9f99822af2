"""Coefficient sets that follow the spectra of the run."""

"""The coefficient sets of the Newton-Schulz iteration: tables, fits, bounds and spectra. No torch."""

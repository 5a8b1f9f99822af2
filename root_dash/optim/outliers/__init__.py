"""The quantile threshold of the momentum, and its selection."""

"""The quantile threshold of the momentum, and how it is selected."""

"""Summaries over buckets of steps: a view costs the same at any length of a run."""

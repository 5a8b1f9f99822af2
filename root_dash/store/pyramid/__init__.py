"""The pyramid: summaries over buckets of steps. A view then costs the same at any length of a run."""

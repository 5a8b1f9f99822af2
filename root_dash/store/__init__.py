"""The only place that knows SQL: frames in, records out."""

"""Writing: runs, attempts and frames to rows."""

"""Records to rows: runs, attempts, frames."""

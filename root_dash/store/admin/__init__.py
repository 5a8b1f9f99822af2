"""What is done to a whole database: examine, prune, export."""

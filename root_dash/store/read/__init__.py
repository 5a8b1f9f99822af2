"""Reading: queries, and rows to records."""

"""One update: of ROOT, and of AdamW for the parameters that ROOT leaves alone."""

"""Several processes: what each measured, sent to the first and merged."""

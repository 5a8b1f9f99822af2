"""What is known of optimizers: how each is observed."""

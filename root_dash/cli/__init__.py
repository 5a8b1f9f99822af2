"""The `root-dash` command."""

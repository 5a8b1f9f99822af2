"""One revision for each schema version, named as it is."""

"""One revision for each schema version, named after the version."""

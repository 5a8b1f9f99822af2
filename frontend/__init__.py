"""The dashboard: no torch and no SQL; the dashboard reads through the verbs of the store."""

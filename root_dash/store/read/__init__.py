"""Queries, and rows back to records."""

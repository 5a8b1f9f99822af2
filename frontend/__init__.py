"""Pixels: the dashboard. No torch, no SQL; reads through the verbs of the store."""

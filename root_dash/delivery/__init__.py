"""Frames to a server over HTTP: spooled on disk first, sent until they have arrived."""

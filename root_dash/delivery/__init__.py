"""Delivery of frames to a server over HTTP: stored in a spool on disk first, and sent until they have arrived."""

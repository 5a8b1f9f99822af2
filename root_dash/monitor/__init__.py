"""Measures training steps on the device and makes frames of them. Knows torch, but neither SQL nor HTTP."""

"""Tests, one folder per package; heavy and browser tests run last."""

"""The version, for whoever must not import the package's own names, behind which torch is."""

__version__ = "0.1.0"

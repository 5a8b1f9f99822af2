"""The version, in a module of its own for code that must not import the package's public names."""

__version__ = "0.1.0"

"""The tables, their versions and growth, and how arrays are kept in them."""

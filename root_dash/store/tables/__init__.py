"""The tables, and how arrays are kept in them."""

"""The quantities that are measured of a layer, one file each."""

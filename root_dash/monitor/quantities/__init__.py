"""What is measured of a layer: one file per quantity."""

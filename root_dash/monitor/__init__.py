"""From tensors to frames: what is measured of a training step, and how it leaves the device. torch; no SQL, no HTTP."""

"""From the device to the sink: one copy per frame, a bounded queue, one thread."""

"""All Triton kernels, with plain torch beside them, and what they share: `loader`, `counting`, `host_copy`."""

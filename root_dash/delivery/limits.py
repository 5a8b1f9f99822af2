"""The limits of a delivery: sizes of batches and spools, and waiting times. The tests use small limits."""

from __future__ import annotations

from dataclasses import dataclass

from root_dash import wire


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """The limits of a delivery."""

    batch_bytes: int = 4 * 2**20
    """Largest size in bytes of a batch before compression. A larger frame travels alone."""
    batch_frames: int = 256
    frame_bytes: int = wire.LIMIT - 2**10
    """Largest size in bytes of a frame before compression. A larger frame, of billions of entries, loses its masks."""
    settled_bytes: int = 64 * 2**20
    """Bytes of acknowledged frames after which the server is asked to write the frames to its disk, so that the spool
    can remove them. With 100 layers these are 112 frames, which took 0.2 to 0.3 s, two thirds on this machine."""
    spool_bytes: int = 2 * 2**30
    """Size in bytes at which a spool is full: the training needs the disk, too. Later frames count as lost."""
    linger_seconds: float = 1.0
    """How long frames may gather before they are sent."""
    first_pause: float = 0.5
    """Seconds before the next request to a server that does not answer. The pause doubles each time."""
    longest_pause: float = 60.0
    drain_seconds: float = 30.0
    """How long the end of a recording waits for frames to be sent, while the server takes them."""

"""The limits of a delivery: sizes of batches and spools, and how long a sender waits. The tests use small limits."""

from __future__ import annotations

from dataclasses import dataclass

from root_dash import wire


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """How much is sent, kept and waited for."""

    batch_bytes: int = 4 * 2**20
    """Bytes of a batch before it is compressed. A larger frame travels alone."""
    batch_frames: int = 256
    frame_bytes: int = wire.LIMIT - 2**10
    """Bytes of a frame before it is compressed. A larger frame, of billions of entries, loses its exact masks."""
    settled_bytes: int = 64 * 2**20
    """Bytes of acknowledged frames after which the server is asked to write them through to its disk, and they are
    removed here. Measured with 100 layers: 0.2 to 0.3 s for these 112 frames, two thirds of it here."""
    spool_bytes: int = 2 * 2**30
    """Bytes that a spool may hold, and one more frame: the training needs the disk, too. Later frames count as lost."""
    linger_seconds: float = 1.0
    """How long frames may gather before they are sent."""
    first_pause: float = 0.5
    """Seconds before a server that does not answer is tried again. The pause doubles each time."""
    longest_pause: float = 60.0
    drain_seconds: float = 30.0
    """How long the end of a recording may wait for frames to be sent, while the server takes them."""

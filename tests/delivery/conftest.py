"""What the tests of the delivery leave behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from root_dash.delivery.limits import DeliveryLimits


@pytest.fixture(autouse=True)
def _senders_rest() -> Iterator[None]:
    """Let a sender that lost its server try as rarely as a user's: it tries while the process lives, which tests on."""
    yield
    for thread in threading.enumerate():
        if thread.name == "root-dash-sender":
            thread._target.__self__._limits = DeliveryLimits()  # type: ignore[attr-defined]

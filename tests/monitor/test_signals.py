"""What a process that SIGTERM ends says of what it leaves behind."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

_SCRIPT = """
import os, signal, sys, time
from root_dash.monitor.signals import drain_on_termination

class Slow:
    pending = int(sys.argv[1])

    def close(self, timeout):
        return False

drain_on_termination(Slow())
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""


@pytest.mark.parametrize(("pending", "said"), [(0, ""), (3, "terminated with 3 frames that could not be stored")])
def test_only_frames_that_are_missing_are_told(pending: int, said: str) -> None:
    """A writer that is still busy once all frames are stored, as while they are sent on, has left none behind."""
    ended = subprocess.run([sys.executable, "-c", _SCRIPT, str(pending)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGTERM
    assert (said in ended.stderr) if said else not ended.stderr

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from functools import partial

import pytest

from root_dash.optim.calibration import background
from root_dash.optim.calibration.background import Job
from tests.waiting import LIMIT_SECONDS


def test_one_thread_does_all_jobs_in_order() -> None:
    """Results come from one daemon thread, not from the caller's thread; `result` raises the error of a job."""
    order: list[int] = []

    def note(place: int) -> threading.Thread:
        order.append(place)
        return threading.current_thread()

    jobs = [Job(partial(note, place)) for place in range(20)]
    threads = {job.result() for job in jobs}
    assert order == list(range(20))
    assert len(threads) == 1
    assert threads.pop().daemon

    def fail() -> None:
        raise ArithmeticError("no")

    job = Job(fail)
    for _ in range(2):
        with pytest.raises(ArithmeticError, match="no"):
            job.result()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_a_forked_process_goes_on_by_itself() -> None:
    """A forked child computes the unfinished jobs of its parent, and then has a thread of its own."""
    code = """
import os, sys, threading, time
import numpy as np
from root_dash.optim.calibration.background import Job

started, release = threading.Event(), threading.Event()
def slow():
    started.set()
    release.wait(10)
    return os.getpid()
blocked = Job(slow)
waiting = Job(lambda: os.getpid())
started.wait()
child = os.fork()
if child == 0:
    release.set()
    mine = waiting.result() == os.getpid() and blocked.result() == os.getpid()
    os._exit(0 if mine and Job(lambda: os.getpid()).result() == os.getpid() else 1)
release.set()
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) or (waiting.result() != os.getpid()))
"""
    assert (
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, timeout=LIMIT_SECONDS).returncode == 0
    )


def test_leaving_does_not_wait_for_it() -> None:
    """The interpreter exits cleanly while a calibration is pending."""
    code = """
import torch
from root_dash.optim.calibration.online import Calibration
calibration = Calibration("adaptive", 5, every=2)
for step in (2, 4):
    calibration.apply(step, calibration.take(step))
    calibration.offer(step, (64, 256), torch.randn(64, 256))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, timeout=LIMIT_SECONDS, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_thread_starts_with_the_first_job() -> None:
    """An import starts no thread."""
    code = "import threading, root_dash.optim.calibration.online; raise SystemExit(threading.active_count() - 1)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=LIMIT_SECONDS).returncode == 0
    assert background.Job(lambda: 1).result() == 1

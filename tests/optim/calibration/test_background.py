from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from root_dash.optim.calibration import background
from root_dash.optim.calibration.background import Job
from tests.waiting import LIMIT_SECONDS
from tests.zygote import run as forked


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
    done = forked("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_thread_starts_with_the_first_job() -> None:
    """An import starts no thread."""
    code = "import threading, root_dash.optim.calibration.online; raise SystemExit(threading.active_count() - 1)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=LIMIT_SECONDS).returncode == 0
    assert background.Job(lambda: 1).result() == 1


@pytest.mark.heavy
def test_a_process_that_ends_finishes_the_job_that_runs_and_drops_the_others(tmp_path: Path) -> None:
    """Python would cut the thread off inside of torch, and the process would abort after its training has ended."""
    code = """
import sys, threading, torch
from pathlib import Path
from root_dash.optim.calibration.background import Job

begun = threading.Event()
def compute(name):
    begun.set()
    for _ in range(300):
        torch.linalg.svdvals(torch.randn(40, 40))
    Path(sys.argv[1], name).touch()
jobs = [Job(lambda name=name: compute(name)) for name in ("first", "second")]
begun.wait()
"""
    run = forked("-c", code, tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


@pytest.mark.heavy
def test_a_job_that_is_dropped_or_begun_at_the_end_keeps_nobody_waiting() -> None:
    """What waits when the process ends has an error as its result; a job that begins then runs at once."""
    code = """
import atexit, threading

def last():
    try:
        waiting.result()
    except RuntimeError as error:
        print(error)
    print(Job(lambda: 7).result())
atexit.register(last)  # runs after the end of the background thread, which registers later
from root_dash.optim.calibration.background import Job
begun, release = threading.Event(), threading.Event()
running = Job(lambda: (begun.set(), release.wait()))
waiting = Job(lambda: 1)
begun.wait()
atexit.register(release.set)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == ["the process ended before the computation began", "7"]

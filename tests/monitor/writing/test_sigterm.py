"""How SIGTERM ends a process wherever it is, and what it says of what it leaves behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import root_dash
from tests.waiting import LIMIT_SECONDS
from tests.zygote import Forked

_SCRIPT = """
import os, signal, sys, time
from root_dash.monitor.writing.sigterm import drain_on_termination

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
    ended = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(pending)], capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    assert ended.returncode == -signal.SIGTERM
    assert (said in ended.stderr) if said else not ended.stderr


_UNREAD = """
os.set_blocking(2, False)
try:
    while True:
        os.write(2, bytes(4096))
except BlockingIOError:
    os.set_blocking(2, True)
drain_on_termination(Slow())
"""


def test_a_process_whose_stderr_nobody_reads_is_ended_all_the_same() -> None:
    """The process has to report lost frames, and its stderr is a full pipe."""
    script = _SCRIPT.replace("drain_on_termination(Slow())", _UNREAD)
    with subprocess.Popen([sys.executable, "-c", script, "3"], stderr=subprocess.PIPE) as process:
        try:
            assert process.wait(LIMIT_SECONDS) == -signal.SIGTERM
        finally:
            process.kill()


# Taking a lock of C's twice waits for ever, and no signal interrupts it: as a collective waits for peers that are gone,
# with the interpreter's lock let go.
_STUCK = """
import ctypes, root_dash, sys
from tests.monitor.training import Model, root, train
model = Model(); optimizers = root(model)
run = root_dash.watch(model, optimizers, db=sys.argv[1])
train(model, optimizers, 7, run.log)
lock = ctypes.create_string_buffer(64)
ctypes.CDLL(None).pthread_mutex_lock(lock)
print("ready", flush=True)
ctypes.CDLL(None).pthread_mutex_lock(lock)
"""


def ended(script: str, *arguments: str) -> tuple[int, str]:
    """The status and the stderr of a process that was sent SIGTERM when it said that it was ready."""
    process = Forked("-c", script, *arguments)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    try:
        _, err = process.communicate(timeout=LIMIT_SECONDS)
    finally:
        process.kill()
    return process.wait(), err


@pytest.mark.heavy
def test_a_process_that_hangs_in_c_stores_what_waits_and_ends_by_sigterm(tmp_path: Path) -> None:
    """No handler of Python would ever run, since the main thread executes no instruction of Python."""
    assert ended(_STUCK, str(tmp_path / "runs.db")) == (-signal.SIGTERM, "")
    with root_dash.open(tmp_path / "runs.db") as store:
        (run,) = store.runs()
    assert (run.frames, run.lost, run.ended_at is not None) == (7, 0, True)


_WATCHED = """
import asyncio, ctypes, os, signal, socket, sys, threading, time
from root_dash.monitor.writing.sigterm import drain_on_termination, forget

class Done:
    pending = 0

    def close(self, timeout):
        return True

def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("root-dash")]
"""


def check(script: str) -> None:
    """Run what goes on after `_WATCHED` in a process of its own, to its end."""
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED + script], capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_forgetting_leaves_neither_handler_nor_thread_nor_socket() -> None:
    """However often, and for two writers when the second is forgotten."""
    check("""
files = len(os.listdir("/dev/fd"))
for _ in range(3):
    first, second = Done(), Done()
    drain_on_termination(first)
    drain_on_termination(second)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "root-dash-signals")
    forget(first)
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL and thread.is_alive()
    forget(second)
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1
assert len(os.listdir("/dev/fd")) == files
""")


def test_who_is_woken_by_signals_already_stays_so() -> None:
    """asyncio is woken, before and after; SIGTERM is then handled as soon as Python gets to it."""
    check("""
theirs, other = socket.socketpair()
theirs.setblocking(False)
signal.set_wakeup_fd(theirs.fileno())
writer = Done()
drain_on_termination(writer)
assert threads() == [] and signal.set_wakeup_fd(-1) == theirs.fileno()

drain_on_termination(writer)
ours = signal.set_wakeup_fd(theirs.fileno())
assert threads() == ["root-dash-signals"] and ours not in (-1, theirs.fileno())
forget(writer)
forget(writer)
assert signal.set_wakeup_fd(ours) == theirs.fileno()  # put back, as trio does: it still must be open
drain_on_termination(writer)
assert signal.set_wakeup_fd(ours) == ours and threads() == ["root-dash-signals"]
forget(writer)

async def wait():
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.set)
    drain_on_termination(writer)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(heard.wait(), 30)

heard = asyncio.Event()
asyncio.run(wait())
""")


def test_a_process_that_ignores_sigterm_is_not_listened_in() -> None:
    """The same holds for a process with a handler of its own, set before or after, and for another thread."""
    check("""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
drain_on_termination(Done())
assert threads() == []
signal.signal(signal.SIGTERM, signal.SIG_DFL)
thread = threading.Thread(target=drain_on_termination, args=(Done(),))
thread.start()
thread.join()
assert threads() == [] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
drain_on_termination(Done())
assert threads() == ["root-dash-signals"]
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.2)
assert heard == [1]
""")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a socket does not tell who wrote to it")
def test_a_signal_to_a_forked_process_does_not_end_its_parent() -> None:
    """Even before it has forgotten what it shares: it was forked past Python, and told nothing."""
    check("""
drain_on_termination(Done())
libc = ctypes.PyDLL(None)
if (child := libc.fork()) == 0:
    getattr(libc, "raise")(signal.SIGTERM)
    os._exit(0)
os.waitpid(child, 0)
time.sleep(0.2)
if (child := os.fork()) == 0:
    assert threads() == [] and signal.set_wakeup_fd(-1) == -1
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
time.sleep(0.2)
assert threads() == ["root-dash-signals"]
""")

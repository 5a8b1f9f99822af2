"""Start Python processes without their imports: one process imports torch and the package, and forks itself for each.

`run("-c", code, ...)` and `Forked("-m", module, ...)` take what would follow `python` on a command line. A forked
process has its own arguments, environment, folder and pipes. It runs as `__main__` and ends through the interpreter, as
a process does that was started anew. A test of what an import does, or of an installed command, starts a new Python.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import IO, Any

from tests.waiting import LIMIT_SECONDS

TREE = Path(__file__).parents[1]

IMPORTS = """
import torch, torch._dynamo, torch.distributed.fsdp, torch.distributed.tensor, torch.utils.data
import root_dash.monitor.ranks.exchange, root_dash.monitor.recorder, root_dash.watching, root_dash.sending
import root_dash.cli.main, root_dash.cli.serving, root_dash.demo.run, root_dash.frontend.app, root_dash.server.app
import tests.delivery.servers, tests.monitor.training, uvicorn
"""
"""What the forked processes need, and what is slow to import. No thread may start here: a fork has none of them."""


class Forked:
    """A process that was forked with its imports done: what the tests use of `subprocess.Popen`, as text."""

    def __init__(
        self,
        *command: str | Path,
        cwd: Path = TREE,
        env: Mapping[str, str] | None = None,
        stdin: int = DEVNULL,
        stdout: int | IO[Any] = PIPE,
        stderr: int | IO[Any] = PIPE,
    ) -> None:
        self.returncode: int | None = None
        self._said, asked = socket.socketpair()
        with contextlib.ExitStack() as theirs:
            theirs.callback(asked.close)
            ends = [_ends(where, writes=place > 0, keep=theirs) for place, where in enumerate((stdin, stdout, stderr))]
            socket.send_fds(_zygote()[1], [b"?"], [*(end for end, _ in ends), asked.fileno()])
        self.stdin, self.stdout, self.stderr = (ours for _, ours in ends)
        request = {"command": list(map(str, command)), "cwd": str(cwd), "environment": dict(env or os.environ)}
        self._said.sendall(json.dumps(request).encode() + b"\n")
        self._lines = self._said.makefile()
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        """Return the exit status if the process has ended: as a negative number, the signal that ended it."""
        if self.returncode is None and select.select([self._said], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float = LIMIT_SECONDS) -> int:
        """Wait for the end of the process, and return its exit status.

        Raises:
            subprocess.TimeoutExpired: the process has not ended.
        """
        if self.returncode is None:
            if not select.select([self._said], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._said.close()
        return self.returncode

    def communicate(self, text: str = "", timeout: float = LIMIT_SECONDS) -> tuple[str, str]:
        """Write a text to the process, wait for its end, and return what is left on stdout and stderr.

        Raises:
            subprocess.TimeoutExpired: the process did not end, and was killed.
        """
        if self.stdin is not None:
            self.stdin.write(text)
            self.stdin.close()
        pipes = [pipe for pipe in (self.stdout, self.stderr) if pipe is not None]
        with ThreadPoolExecutor(2) as pool:
            read: dict[IO[str], Future[str]] = {pipe: pool.submit(pipe.read) for pipe in pipes}
            try:
                self.wait(timeout)
            except BaseException:
                self.kill()
                raise
        for pipe in pipes:
            pipe.close()
        out, err = (read[pipe].result() if pipe is not None else "" for pipe in (self.stdout, self.stderr))
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal to the process unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def run(
    *command: str | Path, cwd: Path = TREE, env: Mapping[str, str] | None = None, timeout: float = LIMIT_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a process to its end, with its imports done; return its exit status and what it wrote.

    Raises:
        subprocess.TimeoutExpired: the process did not end, and was killed.
    """
    process = Forked(*command, cwd=cwd, env=env)
    out, err = process.communicate(timeout=timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _ends(where: int | IO[Any], *, writes: bool, keep: contextlib.ExitStack) -> tuple[int, IO[str] | None]:
    """Return the end of a stream that the process gets, and ours if the stream is a pipe; `keep` closes the first."""
    if where == PIPE:
        reading, writing = os.pipe()
        theirs, ours = (writing, reading) if writes else (reading, writing)
        keep.callback(os.close, theirs)
        return theirs, open(ours, "r" if writes else "w")
    if where == DEVNULL:
        theirs = os.open(os.devnull, os.O_RDWR)
        keep.callback(os.close, theirs)
        return theirs, None
    return where if isinstance(where, int) else where.fileno(), None


@functools.cache
def _zygote() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Return the process that forks, and the socket on which it is asked to; started with the first process."""
    ours, theirs = socket.socketpair()
    with theirs:
        arguments = [sys.executable, "-m", "tests.zygote", str(theirs.fileno())]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        started = subprocess.Popen(
            arguments, cwd=TREE, env=environment, stdin=DEVNULL, stdout=DEVNULL, pass_fds=[theirs.fileno()]
        )
    return started, ours


def stop() -> None:
    """End the process that forks, if one was started."""
    if _zygote.cache_info().currsize:
        process, asking = _zygote()
        asking.close()
        process.wait(LIMIT_SECONDS)
        _zygote.cache_clear()


def _requests(asking: socket.socket) -> Iterator[dict[str, Any]]:
    """Fork for each request, and yield it in the fork alone; end with the tests.

    Two forks: one is the process, and the other waits for its end and reports it, while the zygote goes on.
    """
    sys.modules["triton"] = None  # type: ignore[assignment] # its import would warn of the frozen objects
    exec(IMPORTS, {})  # noqa: S102 (the text above)
    gc.collect()
    gc.freeze()  # a fork does not take apart at its end what it did not make: two thirds of a second less
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keepers: set[int] = set()
    while True:
        message, files, *_ = socket.recv_fds(asking, 1, 4)
        keepers -= {keeper for keeper in keepers if os.waitpid(keeper, os.WNOHANG)[0]}
        if not message:
            break
        keeper = os.fork()
        if keeper:
            keepers.add(keeper)
            for file in files:
                os.close(file)
            continue
        signal.signal(signal.SIGINT, signal.default_int_handler)
        asking.close()
        with socket.socket(fileno=files.pop()) as asked:
            child = os.fork()
            if child == 0:
                with asked.makefile() as words:
                    request = json.loads(words.readline())
                for place, file in enumerate(files):
                    os.dup2(file, place)
            for file in files:
                os.close(file)
            if child:
                _keep(child, asked)
        yield request
        return
    for keeper in keepers:
        os.waitpid(keeper, 0)


def _keep(child: int, asked: socket.socket) -> None:
    """Say the number of a process, then its exit status, and end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for place in range(3):
        os.close(place)
    with contextlib.suppress(BrokenPipeError):
        asked.sendall(f"{child}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        asked.sendall(f"{status}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    for _request in _requests(socket.socket(fileno=int(sys.argv[1]))):
        os.environ.clear()
        os.environ.update(_request["environment"])
        os.chdir(_request["cwd"])
        _kind, _what, *_arguments = _request["command"]
        sys.argv = [_kind, *_arguments]
        if _kind == "-m":
            runpy.run_module(_what, run_name="__main__", alter_sys=True)
        else:
            # In this module's own names, which live until the interpreter ends, as those of a program do.
            exec(compile(_what, "<string>", "exec"))  # noqa: S102 (the tests' own)

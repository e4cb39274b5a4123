"""A process that waits to become a helper of this one: forked while that was safe, with all imports made.

A run starts W&B's process beside itself, which imports for about as long as a small run takes. A run that was itself
forked from a preloaded process forks a spare first, before it has threads, and the helper begins at once.
"""

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, NoReturn, Protocol

from vitlight.data.worker_server import close_all_but

__all__ = ["Helper", "fork_spare", "start_helper"]

_POLL_SECONDS = 0.01
_spare: "tuple[socket.socket, int] | None" = None  # the channel to it, and its process id


class Helper(Protocol):
    """A process with pipes to its standard input and from its standard output."""

    pid: int
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; subprocess.TimeoutExpired where it takes longer."""


def fork_spare() -> None:
    """For the next `start_helper` of this process, which has a single thread still. It ends with this process."""
    global _spare
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        _wait_for_work(theirs)
    theirs.close()
    _spare = ours, pid


def start_helper(module: str, argument: str, log: Path) -> Helper:
    """`python -m MODULE ARGUMENT` in a session of its own, its errors appended to the log; by the spare, where there is one.
    OSError: it can't be started, or the log can't be written."""
    global _spare
    spare, _spare = _spare, None
    with log.open("ab") as errors:
        if spare is not None:
            channel, pid = spare
            with channel, contextlib.suppress(BrokenPipeError):  # somebody has killed it
                return _ForkedHelper(channel, pid, [module, argument], errors)
        return subprocess.Popen(
            [sys.executable, "-m", module, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            start_new_session=True,
        )


class _ForkedHelper:
    """The spare at work."""

    def __init__(self, channel: socket.socket, pid: int, words: list[str], errors: IO[bytes]) -> None:
        self.pid = pid
        self._code: int | None = None
        its_input, our_output = os.pipe()
        our_input, its_output = os.pipe()
        self.stdin: IO[bytes] | None = os.fdopen(our_output, "wb", buffering=0)
        self.stdout: IO[bytes] | None = os.fdopen(our_input, "rb", buffering=0)
        try:
            socket.send_fds(channel, [json.dumps(words).encode()], [its_input, its_output, errors.fileno()])
        except BrokenPipeError:
            self.stdin.close()
            self.stdout.close()
            raise
        finally:
            os.close(its_input)
            os.close(its_output)

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif deadline is not None and time.monotonic() >= deadline:
                assert timeout is not None
                raise subprocess.TimeoutExpired(["helper"], timeout)
            else:
                time.sleep(_POLL_SECONDS)
        return self._code


def _wait_for_work(channel: socket.socket) -> NoReturn:
    code = 1
    try:
        # A scheduler signals every process of a job, and the run decides what follows from that.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        close_all_but({0, 1, 2, channel.fileno()})
        words, files, _, _ = socket.recv_fds(channel, 1 << 16, 3, socket.MSG_CMSG_CLOEXEC)
        channel.close()
        if words:
            os.setsid()
            for standard, file in enumerate(files):
                os.dup2(file, standard)
                os.close(file)
            module, *arguments = json.loads(words)
            sys.argv = [module, *arguments]
            sys.modules.pop(module, None)  # it is to be made anew, as the main one
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    finally:
        os._exit(code)

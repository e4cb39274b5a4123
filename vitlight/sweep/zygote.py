"""The process that warm cells are forked from: `python -m vitlight.sweep.zygote FD MODULE [PRELOAD]`, started by `warm`.

It imports PRELOAD, calls its `preload`, and then forks a process for each request that comes over the socket FD. That one
becomes what `python -m MODULE ARGS` would be: with its own environment, folder, process group, log and signals; first it
calls PRELOAD's `begin`. The process itself starts no thread and touches no device, which a fork could not carry over; it
looks before each fork.

A request is `{"job": N, "args": [...], "environment": {...}, "folder": PATH}` with the descriptors of the log and of the
claim. Answers: `{"job": N, "pid": PID}` from the forked process itself, before it lets go of the socket, so that whoever
sees the socket's end has been told of every cell; `{"job": N, "code": CODE}` when it has ended, -S after signal S; or
`{"job": N, "refused": WHY}`. It ends when the other end of the socket is closed; its cells go on.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from vitlight.messages import say

__all__ = ["main"]

# Sent to every process of a terminal or a job; they are the cells' and the runner's business.
_OTHERS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_MAX_REQUEST = 1 << 20
_NAME = "vitlight cell"  # of cells in `top` and `ps -e`


class _Zygote:
    """One thread that forks, and tells how what it has forked came to an end."""

    def __init__(self, channel: socket.socket, module: str) -> None:
        self._channel, self._module = channel, module
        self._preloaded: list[Any] = []
        self._environment = dict(os.environ)  # before imports that add to it
        self._jobs: dict[int, int] = {}  # process id -> number of the job
        self._handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _OTHERS_SIGNALS}
        self._child_ended, self._wake = socket.socketpair()
        for end in (self._child_ended, self._wake):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, _nothing)  # without a handler nothing is written to the wake-up descriptor
        signal.set_wakeup_fd(self._wake.fileno())

    def preload(self, name: str) -> None:
        """Let the module import, and make, what cells need."""
        self._preloaded.append(importlib.import_module(name))
        self._preloaded[-1].preload()

    def serve(self) -> None:
        """Until the other end of the channel is closed."""
        gc.collect()
        gc.freeze()  # what is shared with the cells is not touched by their collections, and so not copied
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                ready, _, _ = select.select([self._channel, self._child_ended], [], [])
                if self._child_ended in ready:
                    self._child_ended.recv(4096)
                    self._reap()
                if self._channel in ready:
                    request, descriptors, _, _ = socket.recv_fds(
                        self._channel, _MAX_REQUEST, 2, socket.MSG_CMSG_CLOEXEC
                    )
                    if not request:
                        return
                    self._start(json.loads(request), *descriptors)

    def _send(self, **answer: Any) -> None:
        self._channel.send(json.dumps(answer).encode())

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                self._send(job=self._jobs.pop(pid), code=os.waitstatus_to_exitcode(status))

    def _start(self, request: dict[str, Any], log: int, claim: int) -> None:
        num_threads = len(list(Path("/proc/self/task").iterdir()))
        if num_threads > 1:
            self._send(job=request["job"], refused=f"it has {num_threads} threads")
        elif pid := os.fork():
            self._jobs[pid] = request["job"]
        else:
            self._become(request, log)
        # The claim above all: held here, it would outlive its cell.
        os.close(claim)
        os.close(log)

    def _become(self, request: dict[str, Any], log: int) -> NoReturn:
        """In the forked process: be the cell, and end."""
        code = 1
        try:
            os.setpgid(0, 0)
            with contextlib.suppress(OSError):
                Path("/proc/self/comm").write_text(_NAME)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._send(job=request["job"], pid=os.getpid())  # from now on signals find it
            for end in (self._channel, self._child_ended, self._wake):
                end.close()
            for descriptor in (1, 2):
                os.dup2(log, descriptor)
            os.close(log)
            os.chdir(request["folder"])
            self._take_environment(request["environment"])
            _renew_random_state()
            for module in self._preloaded:
                module.begin()
            code = _run(self._module, request["args"])
        finally:
            _leave(code)

    def _take_environment(self, environment: dict[str, str]) -> None:
        """That of a separate process, and what the imports have added to it."""
        added = {name: value for name, value in os.environ.items() if self._environment.get(name) != value}
        os.environ.clear()
        os.environ.update(environment | added)
        threads = environment.get("OMP_NUM_THREADS", "")
        if threads.isdecimal() and threads != self._environment.get("OMP_NUM_THREADS") and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(int(threads))  # the variable was read when torch was imported


def _nothing(number: int, frame: FrameType | None) -> None:
    pass


def _renew_random_state() -> None:
    """Of the generators that a new process seeds from the system."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()


def _run(module: str, args: list[str]) -> int:
    """The exit code of `python -m MODULE ARGS`."""
    sys.argv = [module, *args]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        say(stop.code)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _leave(code: int) -> NoReturn:
    """As the interpreter ends, but for taking apart what is shared with the other cells: waits for threads, calls what is
    registered for the end, closes files that only unreachable objects hold, flushes."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        gc.collect()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def main() -> None:
    descriptor, module, *preload = sys.argv[1:]
    zygote = _Zygote(socket.socket(fileno=int(descriptor)), module)
    for name in preload:
        zygote.preload(name)
    zygote.serve()


if __name__ == "__main__":
    main()

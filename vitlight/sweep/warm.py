"""Warm cells: processes forked from one that has imported what they need, which takes longer than a small run.

Each cell is a process of its own, as with `LocalExecutor`, and its results are the same; only its start is short. What it is
forked from is `zygote`, started with the executor and ended with it. Linux alone.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vitlight.messages import say
from vitlight.sweep.devices import Sharing
from vitlight.sweep.executors import Job, LocalExecutor, open_log

__all__ = ["WarmExecutor"]

PRELOAD = "vitlight.training.preload"
# Threads that numpy's and scipy's OpenBLAS would start when they are imported.
_NO_THREADS = {"OPENBLAS_NUM_THREADS": "1"}


class WarmExecutor(LocalExecutor):
    """Starts cells as `LocalExecutor` does, from a process that begins to import when this object is made.

    If that process is lost, the cells it started go on and are watched, and later ones start as separate processes. A runner
    that is killed takes it along, and no cell. `close` it, or use it as a context.
    """

    def __init__(self, jobs: int | Sharing = 1, module: str = "vitlight", preload: str | None = PRELOAD) -> None:
        """jobs: as of LocalExecutor; `sharing` can be set anew before the first cell. module: what cells run, as
        `python -m MODULE`. preload: the module whose `preload` is called once, and whose `begin` by each cell. InputError:
        jobs < 1."""
        super().__init__(jobs, (sys.executable, "-m", module))
        self._numbers = itertools.count()
        self._jobs: dict[int, WarmJob] = {}  # those of which more is to come
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  closed with the executor
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel: socket.socket | None = ours
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vitlight.sweep.zygote", str(theirs.fileno()), module, *filter(None, [preload])],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **_NO_THREADS},
                pass_fds=(theirs.fileno(),),
                process_group=0,
            )
        ours.setblocking(False)

    def __enter__(self) -> "WarmExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process that cells are forked from."""
        return self._process.pid

    def close(self) -> None:
        """End the process that cells are forked from; the cells go on."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._process.kill()
        self._process.wait()
        self._output.close()

    def start(self, args: Sequence[str], slot: int, log_path: Path, claim_fd: int) -> Job:
        def start_separately() -> Job:
            return super(WarmExecutor, self).start(args, slot, log_path, claim_fd)

        self.listen()
        if self._channel is None:
            return start_separately()
        number = next(self._numbers)
        environment = {**os.environ, **self.sharing.environment(slot)}
        request = {"job": number, "args": list(args), "environment": environment, "folder": str(Path.cwd())}
        job = WarmJob(self, log_path, start_separately)
        with open_log(log_path, args) as log:
            try:
                socket.send_fds(self._channel, [json.dumps(request).encode()], [log.fileno(), claim_fd])
                self._jobs[number] = job
            except OSError as error:  # the process is gone, or the environment is too large for one message
                job.take(refused=error.strerror)
        return job

    def listen(self) -> None:
        """Take what the process has told so far."""
        while self._channel is not None:
            try:
                message = self._channel.recv(1 << 16)
            except BlockingIOError:
                return
            except ConnectionResetError:  # it left requests unread; what it had sent can still be read
                continue
            if not message:
                self._lose(self._channel)
                return
            answer = json.loads(message)
            number = answer.pop("job")
            self._jobs[number].take(**answer)
            if "pid" not in answer:
                del self._jobs[number]

    def _lose(self, channel: socket.socket) -> None:
        self._channel = None
        channel.close()
        code = self._process.wait()
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").splitlines()
        last = next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        _say(f"the process that preloads cells {how}{last}; cells start as separate processes from now on")
        for job in self._jobs.values():
            job.orphan()
        self._jobs.clear()


class WarmJob:
    """A cell that is to be forked, is running, or has ended."""

    def __init__(self, executor: WarmExecutor, log_path: Path, start_separately: Callable[[], Job]) -> None:
        self._executor, self._log_path, self._start_separately = executor, log_path, start_separately
        self._separate: Job | None = None
        self._pid: int | None = None
        self._code: int | None = None
        self._asked: int | None = None  # the signal that it gets as soon as it is there
        self._is_orphan = False

    def poll(self) -> int | None:
        if self._separate is None:
            self._executor.listen()
        if self._separate is not None:
            return self._separate.poll()
        if self._is_orphan and self._code is None and self._pid is not None and not _runs(self._pid):
            self._code = 1
            with contextlib.suppress(OSError), self._log_path.open("a", encoding="utf-8") as log:
                log.write("\nvitlight: this cell's exit code is unknown: the process that started it ended before it\n")
        return self._code

    def terminate(self) -> None:
        self._ask(signal.SIGTERM)

    def kill(self) -> None:
        self._ask(signal.SIGKILL)

    def _ask(self, number: signal.Signals) -> None:
        if self.poll() is not None:
            return
        if self._separate is not None:
            end = self._separate.kill if number == signal.SIGKILL else self._separate.terminate
            end()
        self._asked = number
        self._send()

    def _send(self) -> None:
        """The signal asked for, where there is one and somebody to get it."""
        if self._pid is not None and self._asked is not None:
            send = os.killpg if self._asked == signal.SIGKILL else os.kill
            with contextlib.suppress(ProcessLookupError):
                send(self._pid, self._asked)

    def take(self, pid: int | None = None, code: int | None = None, refused: str | None = None) -> None:
        """What the executor was told of it."""
        if pid is not None:
            self._pid = pid
            self._send()
        elif code is not None:
            self._code = code
        else:
            _say(f"a cell starts as a separate process, as it could not be forked: {refused}")
            self._begin_separately()

    def orphan(self) -> None:
        """Nothing more will be told of it."""
        self._is_orphan = True
        if self._pid is None:
            self._begin_separately()

    def _begin_separately(self) -> None:
        if self._asked is not None:
            self._code = -self._asked
        else:
            self._separate = self._start_separately()


def _runs(pid: int) -> bool:
    """Whether the process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _say(line: str) -> None:
    say(f"vitlight: {line}")

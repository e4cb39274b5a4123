"""Runs of `vitlight` as processes of their own, forked from one that has imported everything: an import takes seconds."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

__all__ = ["Zygote", "free_port", "open_zygote", "rank_environment"]

DEADLINE_SECONDS = 180.0


class Zygote:
    """The server's side of the pipe that a test holds."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, args: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> int:
        """The process id of `vitlight ARGS`, which leads a process group of its own; its output is appended to `log`."""
        return self._ask(args=list(args), log=str(log), env=dict(env or {}))

    def exit_code(self, pid: int) -> int:
        """Wait for a process: its exit code, -N where signal N ended it."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (code := self._ask(poll=pid)) is None:
            assert time.monotonic() < deadline, f"process {pid} runs for more than {DEADLINE_SECONDS} s"
            time.sleep(0.02)
        return code

    def run(self, args: Sequence[str], log: Path) -> int:
        return self.exit_code(self.start(args, log))


@contextmanager
def open_zygote() -> Iterator[Zygote]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.training.zygote"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Zygote(process)
    finally:
        process.communicate(timeout=30)  # it ends, and kills what it started, when its input is closed


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def rank_environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """What torchrun would set for a rank on one machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "ROLE_RANK": rank, "MASTER_PORT": port}
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"), num_ranks)
    texts = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
    return {**{name: str(value) for name, value in {**numbers, **sizes}.items()}, **texts}


def _serve() -> None:
    import signal

    from vitlight.cli import main
    from vitlight.training import experiment, run  # noqa: F401  what every child needs

    ended: dict[int, int] = {}
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid = request["poll"]
            while running and (found := os.waitpid(-1, os.WNOHANG))[0]:
                running.discard(found[0])
                ended[found[0]] = os.waitstatus_to_exitcode(found[1])
            answer = ended.get(pid)
        else:
            pid = answer = os.fork()
            if pid == 0:
                _become_run(request, main)
            running.add(pid)
        print(json.dumps(answer), flush=True)
    for pid in running:
        os.killpg(pid, signal.SIGKILL)


def _become_run(request: Mapping[str, Any], main: Any) -> None:
    import atexit
    import signal

    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    os.setsid()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    os.environ.update(request["env"])
    rank_zero_only.rank = int(request["env"].get("RANK", 0))
    descriptor = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    code = 70
    try:
        sys.stdin.close()
        code = main(request["args"])
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    _serve()

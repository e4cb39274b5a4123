"""The run directory: what one run leaves behind, written so that a kill at any moment loses nothing that was done."""

import contextlib
import functools
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vitlight.errors import InputError
from vitlight.messages import say
from vitlight.training.checkpoint import flush_to_disk, write_atomically
from vitlight.training.locks import take_lock

__all__ = ["RunDirectory", "code_commit", "finite_or_none", "package_versions"]


def finite_or_none(value: Any) -> Any:
    """NaN and infinity become null: JSON has no such numbers."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_before(line: str, step: int) -> bool:
    """False also for a line that a kill tore."""
    try:
        return bool(json.loads(line)["step"] < step)
    except ValueError:
        return False


class RunDirectory:
    """`runs/NAME/RUN_ID/` with experiment.yaml, metrics.jsonl, result.json, checkpoints/ and, where images were left out,
    skipped.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics_path = path / "metrics.jsonl"
        self.result_path = path / "result.json"
        self.experiment_path = path / "experiment.yaml"
        self.skipped_path = path / "skipped.jsonl"

    def create(self) -> None:
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def claimed(self, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the directory; raises InputError when another process has not let go of it within `wait_seconds`. The lock
        dies with its holder; it reaches as far as `flock` does (see `locks`)."""
        path = self.path / ".lock"
        deadline, said = time.monotonic() + wait_seconds, False
        while (lock := take_lock(path)) is None:
            holder = f"run {self.path} is in progress in process {path.read_text().strip() or '?'}"
            if time.monotonic() >= deadline:
                raise InputError(f"{holder}; run.claim_wait_seconds={wait_seconds:g} is how long to wait for it")
            if not said:
                say(f"{holder}; waiting up to {wait_seconds:g} s for it to end")
            said = True
            time.sleep(0.1)
        try:
            path.write_text(f"{os.getpid()} on {platform.node()}")
            yield
        finally:
            os.close(lock.fd)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row to metrics.jsonl."""
        line = json.dumps({name: finite_or_none(value) for name, value in row.items()}, allow_nan=False)
        with self.metrics_path.open("a") as file:
            file.write(line + "\n")

    def metrics_length(self) -> int:
        """Bytes of metrics.jsonl, flushed to disk: what a checkpoint remembers."""
        if not self.metrics_path.exists():
            return 0
        flush_to_disk(self.metrics_path)
        return self.metrics_path.stat().st_size

    def rewind_metrics(self, length: int) -> None:
        """Drop the rows written after a checkpoint that remembers `length` bytes; they will be written again."""
        if not self.metrics_path.exists():
            self.metrics_path.touch()
        size = self.metrics_path.stat().st_size
        if size < length:
            raise InputError(f"{self.metrics_path} has {size} bytes, its checkpoint remembers {length}: rows were lost")
        os.truncate(self.metrics_path, length)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a torn last line is left out."""
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def append_skipped(self, step: int, faults: Sequence[str]) -> None:
        """Note images that a step left out. Any rank may: each line is appended in one piece."""
        lines = "".join(json.dumps({"step": step, "fault": fault}) + "\n" for fault in faults)
        with self.skipped_path.open("a") as file:
            file.write(lines)

    def skipped(self, before_step: int) -> list[str]:
        """The faults of the images left out by the steps before `before_step`, once for each time."""
        if not self.skipped_path.exists():
            return []
        rows = [json.loads(line) for line in self.skipped_path.read_text().splitlines()]
        return [row["fault"] for row in rows if row["step"] < before_step]

    def rewind_skipped(self, step: int) -> None:
        """Drop what the steps from `step` on left out; they will be run again."""
        if self.skipped_path.exists():
            rows = [line for line in self.skipped_path.read_text().splitlines() if _is_before(line, step)]
            write_atomically(self.skipped_path, "".join(f"{row}\n" for row in rows))

    def read_result(self) -> dict[str, Any] | None:
        return json.loads(self.result_path.read_text()) if self.result_path.exists() else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        plain = {name: finite_or_none(value) for name, value in result.items()}
        write_atomically(self.result_path, json.dumps(plain, indent=1, allow_nan=False) + "\n")


def package_versions() -> dict[str, str]:
    """Versions of Python, vitlight and the packages that numbers depend on."""
    versions = {"python": platform.python_version()}
    for name in ("vitlight", "torch", "lightning", "torchmetrics", "numpy", "pillow", "simplejpeg"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


@functools.cache
def code_commit() -> str | None:
    """Commit of the working copy that vitlight runs from (`-dirty` where it was changed), None outside of one; as it was at
    the first call in this process."""
    folder = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

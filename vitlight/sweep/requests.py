"""What people ask of the runners of a sweep, wherever these are: files `requests/<n>.json` in its directory.

A request is for whoever runs when it is made: a runner heeds those that are newer than itself, so the next `run` is not
bound by an old one. The number n + 1 is made with O_CREAT | O_EXCL, which one of all hosts can do, and no clock is read.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from vitlight.errors import InputError

__all__ = ["Request", "Requests", "write_request"]

Action = Literal["stop", "retry"]


@dataclass(frozen=True)
class Request:
    """run_ids: the cells that it is about; None: the whole sweep, its runners included."""

    action: Action
    run_ids: tuple[str, ...] | None
    by: str  # user@host
    at: str  # UTC, ISO 8601; for people

    def concerns(self, run_id: str) -> bool:
        return self.run_ids is None or run_id in self.run_ids


def write_request(directory: Path, action: Action, run_ids: Collection[str] | None) -> Request:
    """Leave a request for the runners that are at work. InputError: the sweep's directory can't be written."""
    by = f"{_user()}@{platform.node()}"
    chosen = None if run_ids is None else tuple(run_ids)
    request = Request(action, chosen, by, datetime.now(UTC).isoformat(timespec="seconds"))
    try:
        (directory / "requests").mkdir(exist_ok=True)
        number = _newest(directory) + 1
        while not _make(_path(directory, number), json.dumps(asdict(request)).encode()):
            number += 1
    except OSError as error:
        raise InputError(f"{directory} can't be written ({error.strerror}); nothing was asked") from None
    return request


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container
        return str(os.getuid())


def _path(directory: Path, number: int) -> Path:
    return directory / "requests" / f"{number}.json"


def _newest(directory: Path) -> int:
    names = (path.stem for path in (directory / "requests").glob("*.json"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _make(path: Path, content: bytes) -> bool:
    """False where somebody else has just made it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
    return True


class Requests:
    """One runner's view: what was asked since it began."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._next = _newest(directory) + 1

    def new(self) -> Sequence[Request]:
        """Those that weren't handed out yet, the oldest first."""
        found: list[Request] = []
        while True:
            request = self._read(_path(self._directory, self._next))
            if request is not None:
                found.append(request)
            elif not _path(self._directory, self._next + 1).exists():
                return found
            self._next += 1

    def _read(self, path: Path) -> Request | None:
        """None where it isn't there, or is empty: just being written, or never to be where a later one is there."""
        try:
            values = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        run_ids = values["run_ids"]
        return Request(values["action"], None if run_ids is None else tuple(run_ids), values["by"], values["at"])

"""Hosts that share a directory and no locks, for killed_agents.py: what their processes see, and which these are."""

import errno
import fcntl
import os
import platform
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Host", "children", "has_network", "is_cell", "processes_of"]


@dataclass
class Host:
    """A name, and a folder that stands for its memory of locks."""

    name: str
    folder: Path
    agents: dict[int, int] = field(default_factory=dict)  # pid -> number

    def move_in(self) -> None:
        """In a process of this host: locks on shared files fail, as on a file system without them, and what replaces them
        is a folder that other hosts don't have."""
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder)
        platform.node = lambda: self.name
        flock = fcntl.flock

        def local_flock(descriptor: Any, operation: int) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            if not Path(f"/proc/self/fd/{number}").readlink().is_relative_to(self.folder):
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            flock(number, operation)

        fcntl.flock = local_flock


def children(pid: int) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def is_cell(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return b"trivial_cell.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def processes_of(host: Host) -> list[int]:
    """What agents of the host have started, whoever their parent is now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"TMPDIR={host.folder}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def has_network() -> bool:
    """Whether there is an interface besides the loopback."""
    return any(line.split(":")[0].strip() != "lo" for line in Path("/proc/net/dev").read_text().splitlines()[2:])

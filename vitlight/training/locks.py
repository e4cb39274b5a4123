"""`flock` on files that hosts share, and what to do where the file system has none.

A lock belongs to the open file description, so a child process that inherits the descriptor keeps it after its parent was
killed, and it is free once both are gone. Lock files are never deleted: two processes could then hold locks on two files
of one name.
"""

import errno
import fcntl
import hashlib
import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vitlight.errors import InputError

__all__ = ["Lock", "find_lock", "take_lock"]

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds. Two locks of one `domain` can't be held at once; of those of different domains
    nothing is known, for a file system may keep locks on each host alone, or not at all."""

    fd: int
    path: Path  # of the file that is locked
    domain: str


def take_lock(path: Path) -> Lock | None:
    """The exclusive lock on `path`, or None where somebody else has it. Where the file system has no locks, it is one on
    a file in this host's temporary folder. InputError where neither can be had."""
    fd = _try(path, fcntl.LOCK_EX)
    if fd is None:
        path = _on_this_host(path)
        fd = _try(path, fcntl.LOCK_EX)
        if fd is None:
            raise InputError(f"{path} can't be locked, nor can files beside the runs; set TMPDIR to a local folder")
    if fd < 0:
        return None
    return Lock(fd, path, _domain(path))


def find_lock(path: Path) -> tuple[bool, str]:
    """Whether anybody holds the lock as far as this host can see, and its domain ("" where it was never taken).

    Tried with a shared lock for an instant: who meets it tries again.
    """
    if not path.exists():
        return False, ""
    fd = _try(path, fcntl.LOCK_SH)
    if fd is None:
        path = _on_this_host(path)
        if not path.exists():
            return False, ""
        fd = _try(path, fcntl.LOCK_SH)
    if fd is not None and fd >= 0:
        os.close(fd)
    return fd is not None and fd < 0, _domain(path)


def _try(path: Path, kind: int) -> int | None:
    """An open descriptor with the lock, -1 where somebody else has it, None where there are no locks."""
    access = os.O_RDWR | os.O_CREAT if kind == fcntl.LOCK_EX else os.O_RDONLY
    fd = os.open(path, access | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return -1
    except OSError as error:
        os.close(fd)
        if error.errno in _NO_LOCKS:
            return None
        why = f"{path} can't be locked ({error.strerror})"
        raise InputError(f"{why}; put the runs into another folder (run.root, --root)") from None
    return fd


def _on_this_host(path: Path) -> Path:
    folder = Path(tempfile.gettempdir()) / f"vitlight-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder} belongs to somebody else; set TMPDIR to a folder of your own")
    return folder / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.lock"


def _domain(path: Path) -> str:
    """The file, this host, and its last start."""
    status = path.stat()
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    return f"{platform.node()} {boot} {status.st_dev} {status.st_ino}"

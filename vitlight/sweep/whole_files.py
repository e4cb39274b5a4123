"""Files of a sweep's directory, which several runners may write at once: readers see one of them, whole."""

import os
import platform
from pathlib import Path

__all__ = ["make_once", "replace_whole"]


def replace_whole(path: Path, content: bytes) -> None:
    """Written beside, under a name of this process's own, and renamed."""
    part = _beside(path)
    part.write_bytes(content)
    part.replace(path)


def make_once(path: Path, content: bytes) -> bool:
    """Written beside, flushed, and linked to its name, which the first of all hosts and processes can do; False for others.
    OSError: also where the file system has no hard links."""
    part = _beside(path)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(part)
    except FileExistsError:
        return False
    finally:
        part.unlink(missing_ok=True)
    return True


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")

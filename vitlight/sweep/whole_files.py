"""Files of a sweep's directory, which several runners may write at once: readers see one of them, whole."""

import os
import platform
from pathlib import Path

__all__ = ["replace_whole"]


def replace_whole(path: Path, content: bytes) -> None:
    """Written beside, under a name of this process's own, and renamed."""
    part = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)

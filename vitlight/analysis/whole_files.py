"""Files that readers see whole: the old one or the new one, never half of it."""

from collections.abc import Callable
from pathlib import Path

__all__ = ["replace_whole"]


def replace_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Have `write` make the file beside its place, and rename it; returns `path`."""
    beside = path.with_name(f".{path.name}.part")
    write(beside)
    return beside.replace(path)

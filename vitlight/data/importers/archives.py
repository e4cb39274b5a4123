"""What a tar begins with: by this archives are told apart, whatever their names."""

import tarfile
import zlib
from pathlib import Path

__all__ = ["first_member"]


def first_member(path: Path) -> str | None:
    """The name of the first file or folder in a tar, gzipped or not; None for what isn't a tar."""
    try:
        with tarfile.open(path) as archive:
            first = archive.next()
    except (OSError, EOFError, tarfile.TarError, zlib.error):
        return None
    return None if first is None else first.name.removeprefix("./")

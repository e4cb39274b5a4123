"""Where compressed sources are unpacked to while they are packed, so that images can be read in any order."""

import shutil
from collections.abc import Callable
from pathlib import Path

from vitlight.data.columns import flush

__all__ = ["Staging"]


class Staging:
    """A folder of folders, each written beside and renamed, so that it is whole or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, name: str, write: Callable[[Path], None]) -> Path:
        """The folder `name`; `write` fills it where it isn't there yet."""
        folder, beside = self.folder / name, self.folder / f"{name}.part"
        if not folder.exists():
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            write(beside)
            for path in beside.iterdir():
                with path.open("rb+") as file:
                    flush(file)
            beside.rename(folder)
        return folder

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

"""What `vitlight predict` is given, files, folders, shards and lists of them, as one sequence of images."""

import contextlib
import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from vitlight.data.cache import ShardCache
from vitlight.data.faults import FaultError
from vitlight.data.index import default_cache
from vitlight.data.scan import image_member
from vitlight.data.shard_set import ShardSet
from vitlight.data.sources import is_remote, local_path, resolve_shards, shard_name, shown
from vitlight.data.store import Store, open_store
from vitlight.data.tar import IMAGE_EXTENSIONS, tar_samples
from vitlight.errors import InputError
from vitlight.prediction.images import Item

__all__ = ["ImageSet"]

_IN_FOLDERS = tuple(f".{extension}" for extension in (*sorted(IMAGE_EXTENSIONS), "gif", "tif", "tiff"))
_TAR = ".tar"
_PATTERN_MARKS = "{*?["


class ImageSet:
    """The images that `sources` name, in their order; those of a folder by name, followed by those of the folders in it.

    A source is a file, a folder, a tar, local or remote, a pattern with braces or stars, or `@FILE`, a list of these, one a
    line. In a folder, files with the extensions of images and of tars are taken, hidden ones are not. Samples of tars need
    no label. image_part: extension of the part that is a sample's image, where it has several.

    Raises InputError for a source that doesn't exist or names no image; a line of a list that doesn't exist is an Item with
    an error.
    """

    def __init__(self, sources: Sequence[str], image_part: str | None = None) -> None:
        self.image_part = image_part
        self._shards: list[str] = []
        self._entries: list[Item | int] = []  # a file, or the number of a shard
        for source in sources:
            self._add(source)
        self.shards = tuple(self._shards)
        self._cache: ShardCache | None = default_cache() if any(map(is_remote, self.shards)) else None

    @property
    def has_shards(self) -> bool:
        return bool(self.shards)

    @property
    def names(self) -> Iterator[str]:
        """Of files and shards, with all that tells them from others."""
        return (self.shards[entry] if isinstance(entry, int) else entry.name for entry in self._entries)

    def open_store(self) -> Store:
        """What reads the shards of its items."""
        return open_store(self.shards, cache=self._cache)

    def count(self) -> int | None:
        """How many images there are, as far as that can be told with no shard being fetched; else None. An index of the
        shards tells it at once; without one, the headers of local shards are read."""
        num_files = len(self._entries) - len(self.shards)
        if not self.shards:
            return num_files
        with contextlib.suppress(InputError):  # of class names that don't fit, which don't matter here
            known = ShardSet(self.shards)
            for folder in known.index_dirs:
                if (index := known.open_index(folder)) is not None:
                    return num_files + len(index)
        return None if self._cache is not None else sum(1 for _ in self)

    def __iter__(self) -> Iterator[Item]:
        """Each image; while those of a shard are taken, the next one is fetched and scanned."""
        with ThreadPoolExecutor(1) as ahead:
            scans: dict[int, Future[list[Item]]] = {}
            numbers = [entry for entry in self._entries if isinstance(entry, int)]
            following = dict(pairwise(numbers))
            for entry in self._entries:
                if not isinstance(entry, int):
                    yield entry
                    continue
                items = scans.pop(entry).result() if entry in scans else self._scan(entry)
                if entry in following:
                    scans[following[entry]] = ahead.submit(self._scan, following[entry])
                yield from items

    def _scan(self, number: int) -> list[Item]:
        """The images of a shard; what is wrong with a sample, or ends the shard, is an Item with an error."""
        shard, name = self.shards[number], shard_name(self.shards[number])
        if self._cache is not None and is_remote(shard):
            with self._cache.hold(shard) as path:
                return self._scan_file(number, path, name)
        return self._scan_file(number, local_path(shard), name)

    def _scan_file(self, number: int, path: Path, name: str) -> list[Item]:
        items: list[Item] = []
        try:
            with path.open("rb", buffering=1 << 13) as file:
                for key, parts in tar_samples(file):
                    text = key.decode(errors="surrogateescape")
                    try:
                        image = image_member(parts, self.image_part)
                    except FaultError as fault:
                        items.append(Item(text, name, number, error=fault.detail))
                    else:
                        items.append(Item(text, name, number, image.offset, image.size))
        except FaultError as fault:
            items.append(Item("", name, number, error=fault.detail))
        except OSError as error:
            items.append(Item("", name, number, error=f"can't read this shard: {error.strerror or error}"))
        return items

    def _add(self, source: str) -> None:
        if source.startswith("@"):
            for line in _lines(Path(source[1:]).expanduser()):
                try:
                    self._add_one(line)
                except InputError as error:
                    if is_remote(line):
                        raise
                    self._entries.append(Item(line, error=str(error).removeprefix(f"{line}: ")))
        else:
            self._add_one(source)

    def _add_one(self, source: str) -> None:
        path = Path(source).expanduser()
        if is_remote(source):
            if source.lower().endswith(_IN_FOLDERS):
                raise InputError(f"{shown(source)}: single images are not fetched; download it, or name shards")
            self._add_shards(source)
        elif path.is_dir():
            self._add_folder(path)
        elif path.suffix == _TAR and path.is_file():
            self._add_shards(str(path))
        elif path.suffix == ".txt" and path.is_file():
            raise InputError(f"{source}: a list of images is given as @{source}")
        elif path.is_file():
            self._entries.append(Item(str(path)))
        elif any(mark in source for mark in _PATTERN_MARKS):
            self._add_pattern(source)
        else:
            raise InputError(f"{source}: no such file or folder; name images, folders, .tar shards or @LIST")

    def _add_pattern(self, source: str) -> None:
        if source.endswith(_TAR):
            self._add_shards(source)
            return
        found = sorted(glob.glob(str(Path(source).expanduser()), recursive=True))  # noqa: PTH207 (takes absolute ones, too)
        if not found:
            raise InputError(f"{source}: no file matches this pattern")
        for each in found:
            self._add_one(each)

    def _add_folder(self, folder: Path) -> None:
        before = len(self._entries)
        for at, folders, files in os.walk(folder):
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            tars = [name for name in files if name.endswith(_TAR) and not name.startswith(".")]
            if tars:
                resolve_shards(at)  # InputError where their writing was cut off
            for name in sorted(files):
                if name.startswith("."):
                    continue
                if name.endswith(_TAR):
                    self._add_shards(os.path.join(at, name))  # noqa: PTH118  a Path takes 5 us to make
                elif name.lower().endswith(_IN_FOLDERS):
                    self._entries.append(Item(os.path.join(at, name)))  # noqa: PTH118
        if len(self._entries) == before:
            raise InputError(f"{folder}: no image and no .tar in this folder or those in it")

    def _add_shards(self, source: str) -> None:
        for shard in resolve_shards(source):
            self._entries.append(len(self._shards))
            self._shards.append(shard)


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not UTF-8 text"
        raise InputError(f"@{path}: can't read this list of images: {reason}") from error
    if not any(lines):
        raise InputError(f"@{path}: this list of images is empty")
    return [line for line in lines if line]

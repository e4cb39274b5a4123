"""A set of shards, and the settings that say what their samples are: what an index is found by."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vitlight.data.labels import ClassNames, LabelReader, LabelSource, read_class_names
from vitlight.data.scan import ScanSettings
from vitlight.data.shard_index import ShardIndex, open_index
from vitlight.data.sources import default_cache_dir, is_remote, local_path, shown
from vitlight.errors import InputError

__all__ = ["CLASS_NAMES_FILE", "ShardSet", "describe_shard", "shard_place"]

CLASS_NAMES_FILE = "classes.txt"  # beside the shards or in index_dir: line i names class i

_FORMAT = 2


@dataclass(frozen=True)
class ShardSet:
    """Shards as `resolve_shards` names them, at least one, and how their samples are read.

    Args:
        index_dir: Where the index is kept; None: `index/` beside the first shard or, where that can't be written or the
            first shard is remote, `index/` in the folder of caches.
        image_part: Extension of the part that is a sample's image, where it has several.
    """

    shards: tuple[str, ...]
    index_dir: Path | None = None
    labels: LabelSource = field(default_factory=LabelSource)
    image_part: str | None = None

    @cached_property
    def index_dirs(self) -> list[Path]:
        """Where the index may lie, the most wanted place first."""
        if self.index_dir is not None:
            return [self.index_dir]
        beside = [] if is_remote(self.shards[0]) else [local_path(self.shards[0]).parent / "index"]
        return [*beside, default_cache_dir() / "index"]

    @cached_property
    def classes(self) -> ClassNames | None:
        """The names in `labels.class_file`; otherwise in a `classes.txt` that lies in `index_dir`, beside the first shard or
        in `index/` there."""
        if self.labels.class_file is not None:
            return read_class_names(Path(self.labels.class_file))
        folders = [] if self.index_dir is None else [self.index_dir]
        if not is_remote(self.shards[0]):
            beside = local_path(self.shards[0]).parent
            folders += [beside / "index", beside]
        found = next((folder / CLASS_NAMES_FILE for folder in folders if (folder / CLASS_NAMES_FILE).exists()), None)
        return None if found is None else read_class_names(found)

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """`describe_shard` of each."""
        return [describe_shard(shard) for shard in self.shards]

    @cached_property
    def settings_digest(self) -> str:
        """16 hex digits over what says which part of a sample is its image and what its labels are."""
        named = self.classes.digest() if self.classes is not None and self.labels.class_file is not None else None
        settings = [_FORMAT, self.labels.field, self.labels.part, self.labels.multi, named, self.image_part]
        return hashlib.blake2b(json.dumps(settings).encode(), digest_size=8).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Names the index. The shards' sizes alone would not do: two tars with other labels can be of equal size."""
        described = json.dumps([self.settings_digest, self.entries])
        return hashlib.blake2b(described.encode(), digest_size=8).hexdigest()

    def open_index(self, folder: Path) -> ShardIndex | None:
        """The index of these shards in `folder`, one of `index_dirs`; None where it has none that is whole."""
        return open_index(folder / self.fingerprint, self.shards, self.classes)

    def scan_settings(self, num_classes: int | None = None, decode: bool = False) -> ScanSettings:
        return ScanSettings(LabelReader(self.labels, self.classes, num_classes), self.image_part, decode)


def describe_shard(shard: str) -> dict[str, Any]:
    """What tells a shard from a later version of it: of a remote one its URL alone, since nothing is asked of its server.

    Raises InputError where a local one is missing.
    """
    if is_remote(shard):
        return {"name": shown(shard), "url_hash": hashlib.blake2b(shard.encode(), digest_size=16).hexdigest()}
    path = shard if not shard.startswith("file:") else str(local_path(shard))
    try:
        stat = os.stat(path)  # noqa: PTH116  a Path takes 20 us to make, and there may be 30,000 shards
    except OSError as error:
        raise InputError(f"{shard}: can't read this shard: {error.strerror}") from error
    return {"name": path.rpartition("/")[2], "num_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def shard_place(shard: str) -> str:
    """16 hex digits for where a shard lies, whatever it holds."""
    place = shard if is_remote(shard) else str(local_path(shard).absolute())
    return hashlib.blake2b(place.encode(), digest_size=8).hexdigest()

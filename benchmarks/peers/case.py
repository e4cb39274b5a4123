"""What every contender is given, and the plain parts that several of them share."""

import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

BATCH_SIZE = 64
WORKERS = 2
MIN_AREA = 0.08
MAX_RATIO = 4.0 / 3.0


@dataclass(frozen=True)
class Case:
    """A set of equally sized images in WebDataset shards. mean_bytes: of an encoded image; mean_pixel: in 0..255."""

    name: str
    folder: str
    shards: tuple[str, ...]
    extension: str
    width: int
    height: int
    num_images: int
    num_classes: int
    output_size: int
    mean_bytes: float
    mean_pixel: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def read(folder: Path) -> "Case":
        fields = json.loads((folder / "case.json").read_text())
        return Case(**{**fields, "shards": tuple(fields["shards"])})

    def own_folder(self, contender: str) -> Path:
        """Where a contender keeps the same images in its own format."""
        return Path(self.folder) / contender

    def members(self) -> list[tuple[str, int, int, int]]:
        """(shard, offset, size, label) of every image, in shard order."""
        found = []
        for shard in self.shards:
            with tarfile.open(shard) as tar:
                parts: dict[str, dict[str, tarfile.TarInfo]] = {}
                for member in tar:
                    key, _, extension = member.name.partition(".")
                    parts.setdefault(key, {})[extension] = member
                for part in parts.values():
                    label = tar.extractfile(part["cls"])
                    assert label is not None
                    image = part[self.extension]
                    found.append((shard, image.offset_data, image.size, int(label.read())))
        return found

    def samples(self) -> Iterator[tuple[bytes, int]]:
        """The encoded bytes and the label of every image, in shard order."""
        for shard, offset, size, label in self.members():
            with Path(shard).open("rb") as file:
                file.seek(offset)
                yield file.read(size), label


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random-resized crop, area 0.08 to 1 and ratio 3/4 to 4/3, ten attempts."""
    for _ in range(10):
        area = width * height * rng.uniform(MIN_AREA, 1.0)
        ratio = np.exp(rng.uniform(-np.log(MAX_RATIO), np.log(MAX_RATIO)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def seconds_each(function: Callable[[Any], Any], items: Sequence[Any], min_seconds: float = 0.7) -> float:
    """Seconds of one call, over whole passes through `items` that last at least `min_seconds`; one pass is warm-up."""
    for item in items:
        function(item)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < min_seconds:
        for item in items:
            function(item)
        calls += len(items)
    return (time.perf_counter() - start) / calls


def read_range(member: tuple[str, int, int, int], _open: dict[str, int] = {}) -> bytes:  # noqa: B006  one descriptor a shard
    shard, offset, size, _ = member
    if shard not in _open:
        _open[shard] = os.open(shard, os.O_RDONLY)
    return os.pread(_open[shard], size, offset)

"""What was packed, read by webdataset and Pillow rather than by ourselves; and images to pack."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.data.tars import read_by_webdataset
from vitlight.data.index import load_index

__all__ = ["Packed", "encoded", "files_of", "pixels_of", "read_packed"]


class Packed(NamedTuple):
    extension: str
    image: bytes
    label: int


def read_packed(folder: Path) -> dict[str, Packed]:
    """key -> sample, in the order of the shards; checks that the index has the same keys and labels in the same order."""
    samples = {}
    for shard in sorted(folder.glob("*.tar")):
        for sample in read_by_webdataset(shard):
            (extension,) = set(sample) & {"jpg", "png", "webp", "bmp"}
            samples[sample["__key__"]] = Packed(extension, sample[extension], int(sample["cls"]))
    index = load_index(folder)
    assert [index.key(i) for i in range(len(index))] == list(samples)
    assert index.label.tolist() == [sample.label for sample in samples.values()]
    return samples


def pixels_of(image: bytes, mode: str | None = None) -> np.ndarray:
    with Image.open(io.BytesIO(image)) as opened:
        return np.array(opened if mode is None else opened.convert(mode))


def encoded(pixels: np.ndarray, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file but the index, which holds times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "index" not in path.relative_to(folder).parts
    }

"""IDX files of the MNIST layout: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` and so on, gzipped or not."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from vitlight.data.importers.split import SourceOptions, Split, array_split, fingerprint, write_arrays
from vitlight.data.importers.staging import Staging
from vitlight.errors import InputError

__all__ = ["IDXFiles", "find", "read_idx"]

_SPLITS = {"train": ("train",), "test": ("t10k", "test")}
_UNSIGNED_BYTE = 0x08
_CHUNK_BYTES = 1 << 20


class IDXFiles:
    """(images, labels) of each split."""

    kind = "IDX files"
    has_class_names = False
    has_label_kinds = False

    def __init__(self, files: dict[str, tuple[Path, Path]]) -> None:
        self.files = files

    def fingerprint(self) -> str:
        return fingerprint((path.name, path) for pair in self.files.values() for path in pair)

    def splits(self, staging: Staging, options: SourceOptions) -> list[Split]:
        return [
            array_split(split, staging.make(split, partial(_stage, *files)), options.classes)
            for split, files in self.files.items()
        ]


def find(source: Path) -> IDXFiles | None:
    """Raises InputError for images without labels, and labels without images."""
    files = {}
    for split, prefixes in _SPLITS.items():
        for prefix in prefixes:
            images, labels = (
                sorted(source.glob(f"{prefix}-{kind}[-.]idx{rank}-ubyte*"))
                for kind, rank in (("images", 3), ("labels", 1))
            )
            if bool(images) != bool(labels):
                raise InputError(f"{source}: {(images or labels)[0].name} is there, but not its images or labels")
            if images:
                files[split] = (images[0], labels[0])
    return IDXFiles(files) if files else None


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes (LeCun's MNIST format), gzipped or not."""
    with _open_idx(path) as (shape, file):
        return np.frombuffer(b"".join(_chunks(file, path, shape)), np.uint8).reshape(shape)


def _stage(images: Path, labels: Path, folder: Path) -> None:
    classes = read_idx(labels)
    with _open_idx(images) as (shape, file):
        if len(shape) != 3 or classes.ndim != 1 or shape[0] != len(classes):
            raise InputError(f"{images} has shape {shape} and {labels} {classes.shape}; they don't belong together")
        write_arrays(folder, shape, _chunks(file, images, shape), classes, images)


@contextmanager
def _open_idx(path: Path) -> Iterator[tuple[tuple[int, ...], IO[bytes]]]:
    """The shape of the array, and a file at its first element."""
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            with gzip.open(plain) if zipped else plain as file:
                head = file.read(4)
                if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UNSIGNED_BYTE:
                    raise InputError(f"{path} is not an IDX file of unsigned bytes")
                sizes = file.read(4 * head[3])
                if len(sizes) < 4 * head[3]:
                    raise InputError(f"{path} ends within its header")
                yield tuple(np.frombuffer(sizes, ">u4").tolist()), cast(IO[bytes], file)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} can't be read: {error}") from error


def _chunks(file: IO[bytes], path: Path, shape: tuple[int, ...]) -> Iterator[bytes]:
    """The bytes of the array, piece by piece. Raises InputError where they are not as many as `shape` needs."""
    num_bytes = 0
    while chunk := file.read(_CHUNK_BYTES):
        num_bytes += len(chunk)
        yield chunk
    if num_bytes != int(np.prod(shape)):
        raise InputError(f"{path} has {num_bytes} bytes of data, its header says {shape}")

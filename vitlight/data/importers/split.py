"""What a source of images gives to be packed: its splits, each an ordered list of keys, labels and places of images."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitlight.data.importers.staging import Staging
from vitlight.errors import InputError

__all__ = ["ImagePlace", "Source", "SourceOptions", "Split", "Texts", "array_split", "fingerprint", "write_arrays"]


@dataclass(frozen=True)
class ImagePlace:
    """Where an image's bytes lie: `size` of them from `offset` on, or all of the file where `size` is None."""

    path: Path
    name: str
    """What an error calls it."""
    offset: int = 0
    size: int | None = None
    shape: tuple[int, ...] | None = None
    """Of raw uint8 pixels, (H, W) or (H, W, C); None for an encoded image."""

    def read(self) -> bytes:
        """Raises InputError where there are fewer bytes."""
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset)
                data = file.read() if self.size is None else file.read(self.size)
        except OSError as error:
            raise InputError(f"{self.name} can't be read: {error.strerror}") from error
        if self.size is not None and len(data) != self.size:
            raise InputError(f"{self.name}: {self.path} ends {self.size - len(data)} bytes too early")
        return data


@dataclass(frozen=True)
class Split:
    """n images in the source's own order, n at least 1."""

    name: str
    class_names: tuple[str, ...] | None
    labels: NDArray[np.int64]
    key: Callable[[int], str]
    image: Callable[[int], ImagePlace]


@dataclass(frozen=True)
class SourceOptions:
    """What a user may have to say about a source."""

    classes: tuple[str, ...] | None = None
    """Names of the classes, where the source has none."""
    labels: str | None = None
    """Which labels, where the source has several kinds."""


class Source(Protocol):
    """One kind of source, found at a path."""

    @property
    def kind(self) -> str:
        """What messages and `dataset.json` call it."""

    @property
    def has_class_names(self) -> bool:
        """Whether `SourceOptions.classes` is refused."""

    @property
    def has_label_kinds(self) -> bool:
        """Whether `SourceOptions.labels` means something."""

    def fingerprint(self) -> str:
        """Changes where the files do."""

    def splits(self, staging: Staging, options: SourceOptions) -> list[Split]:
        """Raises InputError for what can't be read or doesn't fit together."""


class Texts:
    """A list of strings that takes their bytes and 8 more for each: a Python list takes 60 more."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("Q", [0])

    def append(self, text: str) -> None:
        self._bytes += text.encode(errors="surrogateescape")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:
        return self._bytes[self._ends[i] : self._ends[i + 1]].decode(errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


def fingerprint(files: Iterable[tuple[str, Path]]) -> str:
    """16 hex digits over the names given, sizes and modification times."""
    digest = hashlib.blake2b(digest_size=8)
    for name, path in files:
        stat = path.stat()
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def write_arrays(
    folder: Path, shape: tuple[int, ...], chunks: Iterable[ArrayLike | bytes], labels: ArrayLike, source: Path
) -> None:
    """Stages uint8 pixels of `shape` (n, H, W) or (n, H, W, C), which come in chunks, and n labels.

    Raises InputError, naming `source`, for other shapes, labels that are no whole numbers from 0 on, and unequal numbers.
    """
    classes = np.asarray(labels)
    if classes.ndim == 2 and classes.shape[1] == 1:
        classes = classes[:, 0]
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))) or 0 in shape:
        raise InputError(f"{source}: images of shape {shape}; understood are (n, H, W) and (n, H, W, 1 or 3)")
    if classes.shape != shape[:1]:
        raise InputError(
            f"{source}: labels of shape {classes.shape} for images of shape {shape}; there is one label for an image"
        )
    if not np.issubdtype(classes.dtype, np.integer):
        raise InputError(f"{source}: labels are {classes.dtype}; a label is a whole number")
    with (folder / "pixels.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for chunk in chunks:
            file.write(chunk if isinstance(chunk, bytes) else np.ascontiguousarray(chunk, np.uint8).tobytes())
    np.save(folder / "labels.npy", classes.astype(np.int64))


def array_split(name: str, folder: Path, class_names: tuple[str, ...] | None) -> Split:
    """The split whose arrays `write_arrays` staged in `folder`; keys are the images' numbers."""
    path = folder / "pixels.npy"
    pixels = np.load(path, mmap_mode="r")
    shape, begin = pixels.shape[1:3] if pixels.shape[3:] == (1,) else pixels.shape[1:], pixels.offset
    size = int(np.prod(shape))

    def image(i: int) -> ImagePlace:
        return ImagePlace(path, f"{name} image {i}", begin + i * size, size, shape)

    return Split(name, class_names, np.load(folder / "labels.npy"), "{:06d}".format, image)

"""NumPy's .npz, arrays named as MedMNIST (`train_images`, `train_labels`) or Keras (`x_train`, `y_train`) names them."""

import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from vitlight.data.importers.split import SourceOptions, Split, array_split, fingerprint, write_arrays
from vitlight.data.importers.staging import Staging
from vitlight.errors import InputError

__all__ = ["NpzFile", "find"]

_CHUNK_BYTES = 1 << 20
_SPLITS = ("train", "val", "test")
_NAMES = (("{}_images", "{}_labels"), ("x_{}", "y_{}"))


class NpzFile:
    """One .npz; `arrays` are the names of (images, labels) of each split."""

    kind = ".npz arrays"
    has_class_names = False
    has_label_kinds = False

    def __init__(self, path: Path, arrays: dict[str, tuple[str, str]]) -> None:
        self.path, self.arrays = path, arrays

    def fingerprint(self) -> str:
        return fingerprint([(self.path.name, self.path)])

    def splits(self, staging: Staging, options: SourceOptions) -> list[Split]:
        return [
            array_split(split, staging.make(split, partial(self._stage, *names)), options.classes)
            for split, names in self.arrays.items()
        ]

    def _stage(self, images: str, labels: str, folder: Path) -> None:
        try:
            with zipfile.ZipFile(self.path) as archive:
                with archive.open(f"{labels}.npy") as file:
                    classes = np.lib.format.read_array(file, allow_pickle=False)
                with archive.open(f"{images}.npy") as file:
                    shape, in_fortran_order, dtype = _read_header(file)
                    if dtype != np.uint8 or in_fortran_order:
                        order = "Fortran" if in_fortran_order else "C"
                        raise InputError(
                            f"{self.path}: {images} is {dtype} in {order} order; images are uint8 in C order"
                        )
                    write_arrays(folder, shape, _chunks(file, shape), classes, Path(f"{self.path}: {images}"))
        except InputError:
            raise
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{self.path} can't be read: {error}") from error


def find(source: Path) -> NpzFile | None:
    """Raises InputError for several .npz in one folder, one that can't be read, and one with other names."""
    paths = [source] if source.is_file() else sorted(source.glob("*.npz"))
    paths = [path for path in paths if path.suffix == ".npz"]
    if not paths:
        return None
    if len(paths) > 1:
        raise InputError(f"{source} holds {len(paths)} .npz files ({paths[0].name}, {paths[1].name}); give one of them")
    try:
        with zipfile.ZipFile(paths[0]) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{paths[0]} can't be read: {error}") from error
    arrays = {}
    for split in _SPLITS:
        for images, labels in ((images.format(split), labels.format(split)) for images, labels in _NAMES):
            if (images in held) != (labels in held):
                raise InputError(
                    f"{paths[0]} holds {images if images in held else labels} alone of {images} and {labels}"
                )
            if images in held:
                arrays[split] = (images, labels)
    if not arrays:
        raise InputError(
            f"{paths[0]} holds {', '.join(held)}; understood are train_images and train_labels, or x_train and y_train"
        )
    return NpzFile(paths[0], arrays)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _chunks(file: IO[bytes], shape: tuple[int, ...]) -> Iterator[bytes]:
    left = int(np.prod(shape))
    while chunk := file.read(min(left, _CHUNK_BYTES)):
        left -= len(chunk)
        yield chunk
    if left:
        raise EOFError(f"{left} bytes are missing")

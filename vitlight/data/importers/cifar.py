"""CIFAR-10 and CIFAR-100, "python version" (Krizhevsky 2009): the pickles in a folder, or the .tar.gz they come in.

A pickle can run any code, so these are read by an unpickler that builds arrays, strings, numbers, lists and dicts alone.
"""

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vitlight.data.importers.archives import first_member
from vitlight.data.importers.split import SourceOptions, Split, array_split, fingerprint, write_arrays
from vitlight.data.importers.staging import Staging
from vitlight.errors import InputError

__all__ = ["CIFARPickles", "find", "load_pickle"]

_CIFAR10 = "cifar-10-batches-py"
_CIFAR100 = "cifar-100-python"
_FILES: dict[str, dict[str, tuple[str, ...]]] = {
    _CIFAR10: {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    _CIFAR100: {"train": ("train",), "test": ("test",)},
}
_META = {_CIFAR10: "batches.meta", _CIFAR100: "meta"}
_MAX_BYTES = 1 << 30  # 6 times CIFAR-100's largest file: what is larger is something else


class CIFARPickles:
    """`files`: name -> path of a pickle, or the archive that holds it."""

    has_class_names = True

    def __init__(self, layout: str, path: Path) -> None:
        self.layout, self.path = layout, path
        self.kind = "CIFAR-10 pickles" if layout == _CIFAR10 else "CIFAR-100 pickles"
        self.has_label_kinds = layout == _CIFAR100

    def fingerprint(self) -> str:
        if self.path.is_file():
            return fingerprint([(self.path.name, self.path)])
        return fingerprint((name, self.path / name) for name in self._names())

    def splits(self, staging: Staging, options: SourceOptions) -> list[Split]:
        if options.labels not in (None, "fine", "coarse"):
            raise InputError(f"labels={options.labels} is neither fine (100 classes) nor coarse (20 classes)")
        prefix = "" if self.layout == _CIFAR10 else f"{options.labels or 'fine'}_"
        staged: dict[str, Path] = {}
        read = self._reader()
        for split, names in _FILES[self.layout].items():
            staged[split] = staging.make(split, partial(self._stage, map(read, names), f"{prefix}labels"))
        class_names = read(_META[self.layout]).get(f"{prefix}label_names")
        if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
            raise InputError(f"{self.path}: {_META[self.layout]} has no list {prefix}label_names")
        return [array_split(split, folder, tuple(class_names)) for split, folder in staged.items()]

    def _names(self) -> list[str]:
        return [name for names in _FILES[self.layout].values() for name in names] + [_META[self.layout]]

    def _reader(self) -> Callable[[str], dict[str, Any]]:
        """name -> its unpickled dict; an archive is read once, for compressed it can't be read in any order."""
        if not self.path.is_file():
            return lambda name: load_pickle(_read(self.path / name), self.path / name)
        held: dict[str, bytes] = {}
        try:
            with tarfile.open(self.path, "r:gz") as archive:
                for member in archive:
                    name = Path(member.name).name
                    if name in self._names() and member.isfile() and member.size <= _MAX_BYTES:
                        file = archive.extractfile(member)
                        assert file is not None
                        held[name] = file.read()
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise InputError(f"{self.path} can't be read: {error}") from error
        if missing := [name for name in self._names() if name not in held]:
            raise InputError(f"{self.path}: {missing[0]} is missing; is the archive whole?")
        return lambda name: load_pickle(held[name], self.path / name)

    def _stage(self, batches: Iterable[dict[str, Any]], labels: str, folder: Path) -> None:
        pixels: list[np.ndarray] = []
        classes: list[int] = []
        for batch in batches:
            data, those = batch.get("data"), batch.get(labels)
            if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
                raise InputError(f"{self.path}: 'data' of a pickle is no uint8 array (n, 3072)")
            if not isinstance(those, list) or not all(type(label) is int for label in those):
                raise InputError(f"{self.path}: {labels!r} of a pickle is no list of whole numbers")
            pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            classes += those
        shape = (sum(map(len, pixels)), 32, 32, 3)
        write_arrays(folder, shape, pixels, np.array(classes, np.int64), self.path)


def find(source: Path) -> CIFARPickles | None:
    """Raises InputError for a folder that holds some of the files alone."""
    if source.is_file():
        layout = (first_member(source) or "").split("/")[0]
        return CIFARPickles(layout, source) if layout in _FILES else None
    for layout in _FILES:
        for folder in (source, source / layout):
            found = CIFARPickles(layout, folder)
            if (folder / _META[layout]).is_file():
                if missing := [name for name in found._names() if not (folder / name).is_file()]:
                    raise InputError(f"{folder}: {missing[0]} is missing beside {_META[layout]}")
                return found
        for path in sorted(source.glob("*.tar.gz")):
            if (first_member(path) or "").split("/")[0] == layout:
                return CIFARPickles(layout, path)
    return None


def load_pickle(data: bytes, path: Path) -> dict[str, Any]:
    """The dict of a pickle that Python 2 or 3 wrote. Raises InputError for one that asks for anything but plain values."""
    try:
        loaded = _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} was not read: {error}") from error
    except Exception as error:  # a damaged pickle raises anything
        raise InputError(f"{path} is no pickle that can be read: {type(error).__name__}: {error}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{path} holds a {type(loaded).__name__}; a pickle of CIFAR holds a dict")
    return {key: value for key, value in loaded.items() if isinstance(key, str)}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {(f"{numpy}.multiarray", "_reconstruct") for numpy in ("numpy.core", "numpy._core")}:
            return np.ndarray(0).__reduce__()[0]  # where it lies depends on NumPy's version
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return _encode  # how Python 3 writes bytes for Python 2
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}; only arrays and plain values are read from a pickle"
        )


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error

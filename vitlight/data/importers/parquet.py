"""Parquet as Hugging Face's `datasets` writes it: an image column {bytes, path}, a ClassLabel column, names in the schema.

Splits are told by file names: `train-00000-of-00013.parquet`, or `test.parquet`, in the folder or in its `data/`.
"""

import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vitlight.data.importers.split import ImagePlace, SourceOptions, Split, fingerprint
from vitlight.data.importers.staging import Staging
from vitlight.data.progress import progress
from vitlight.errors import InputError
from vitlight.messages import say

__all__ = ["ParquetFiles", "find"]

_FILE = re.compile(r"(\w+?)(?:-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?)?\.parquet")
_ROWS_PER_BATCH = 64


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str
    class_names: tuple[str, ...] | None


class ParquetFiles:
    """split -> its files, in order; the schema is that of the first."""

    kind = "Parquet files"
    has_label_kinds = True

    def __init__(self, files: dict[str, list[Path]]) -> None:
        self.files = files
        self.features, self.schema = _read_schema(next(iter(files.values()))[0])

    @property
    def has_class_names(self) -> bool:
        return any(feature.get("names") for feature in self.features.values())

    def fingerprint(self) -> str:
        return fingerprint((path.name, path) for paths in self.files.values() for path in paths)

    def splits(self, staging: Staging, options: SourceOptions) -> list[Split]:
        """A split that has no labels (all -1, as Hugging Face marks hidden ones) is left out, said on stderr."""
        columns = self._columns(options)
        splits = []
        for name, paths in self.files.items():
            folder = staging.make(name, partial(_stage, name, paths, columns))
            labels = np.load(folder / "labels.npy")
            if len(labels) == 0:
                raise InputError(f"{paths[0]}: {name} has no row; remove its files")
            if (labels == -1).all():
                say(f"{name}: every label is -1, so it has none; left out")
                continue
            splits.append(_split(name, folder, labels, columns.class_names or options.classes, paths))
        if not splits:
            raise InputError(f"{next(iter(self.files.values()))[0]}: no split has labels")
        return splits

    def _columns(self, options: SourceOptions) -> _Columns:
        """By the features of `datasets` where the schema has them, otherwise by type and name."""
        path = next(iter(self.files.values()))[0]
        images = [name for name, fields in self.schema.items() if fields is not None and {"bytes", "path"} <= fields]
        images = [name for name in images if self.features.get(name, {}).get("_type", "Image") == "Image"]
        if len(images) != 1:
            raise InputError(
                f"{path}: {len(images)} columns are images {{bytes, path}}, of {', '.join(self.schema)}; one is"
            )
        labels = [name for name, feature in self.features.items() if feature.get("_type") == "ClassLabel"]
        labels = labels or [name for name in ("label", "labels") if name in self.schema]
        if options.labels is not None and options.labels not in self.schema:
            raise InputError(f"labels={options.labels} is no column of {path}; it has {', '.join(self.schema)}")
        if options.labels is None and len(labels) != 1:
            raise InputError(
                f"{path}: {len(labels) or 'no'} columns hold classes ({', '.join(labels or self.schema)}); "
                "name one with labels=COLUMN"
            )
        label = options.labels or labels[0]
        names = self.features.get(label, {}).get("names")
        return _Columns(images[0], label, None if names is None else tuple(names))


def find(source: Path) -> ParquetFiles | None:
    """Raises InputError for a name that says no split, and for a file of a series that is missing."""
    if source.is_file():
        paths = [source] if source.suffix == ".parquet" else []
    else:
        paths = sorted(source.glob("*.parquet")) or sorted(source.glob("data/*.parquet"))
    files: dict[str, list[Path]] = {}
    series: dict[str, set[int]] = {}
    for path in paths:
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise InputError(
                f"{path}: its name says no split; names are as train-00000-of-00013.parquet or test.parquet"
            )
        files.setdefault(match[1], []).append(path)
        if match[2]:
            series.setdefault(match[1], set(range(int(match[3])))).discard(int(match[2]))
    for split, missing in series.items():
        if missing and not source.is_file():
            raise InputError(f"{source}: file {min(missing):05d} of {split} is missing")
    order = {"train": 0, "validation": 1, "test": 2}
    return ParquetFiles(dict(sorted(files.items(), key=lambda item: order.get(item[0], 3)))) if files else None


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("Parquet needs pyarrow; install vitlight[parquet]") from error
    return pyarrow


def _open(path: Path) -> Any:
    """A pyarrow ParquetFile, without the buffers that would hold a whole row group."""
    pyarrow = _pyarrow()
    try:
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} can't be read: {str(error).splitlines()[0]}") from error


def _read_schema(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, set[str] | None]]:
    """(features of `datasets` by column, names of the fields of each column that has fields)."""
    with _open(path) as file:
        schema = file.schema_arrow
    is_struct = _pyarrow().types.is_struct
    fields = {field.name: {each.name for each in field.type} if is_struct(field.type) else None for field in schema}
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except ValueError as error:
        raise InputError(f"{path}: the schema's metadata 'huggingface' is no JSON: {error}") from error
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}, fields


def _stage(split: str, paths: list[Path], columns: _Columns, folder: Path) -> None:
    """Images in a row (Parquet can't be read image by image), where each ends, labels, and where each file ends."""
    ends, labels, file_ends = array("Q", [0]), array("q"), array("Q")
    with (folder / "images.bin").open("wb") as out, progress(f"Unpacking {split}", len(paths), "files") as advance:
        for path in paths:
            for image, label in _rows(path, columns):
                out.write(image)
                ends.append(ends[-1] + len(image))
                labels.append(label)
            file_ends.append(len(labels))
            advance(1)
    for name, values in (("ends", ends), ("labels", labels), ("file_ends", file_ends)):
        np.save(folder / f"{name}.npy", np.array(values))


def _rows(path: Path, columns: _Columns) -> Iterator[tuple[bytes, int]]:
    pyarrow, row = _pyarrow(), 0
    with _open(path) as file:
        if missing := [name for name in (columns.image, columns.label) if name not in file.schema_arrow.names]:
            raise InputError(f"{path} has no column {missing[0]}, as the first file has")
        if not pyarrow.types.is_integer(file.schema_arrow.field(columns.label).type):
            kind = file.schema_arrow.field(columns.label).type
            raise InputError(f"{path}: column {columns.label} is {kind}; labels are whole numbers")
        try:
            for batch in file.iter_batches(_ROWS_PER_BATCH, columns=[columns.image, columns.label]):
                images = batch.column(columns.image)
                encoded = images.flatten()[images.type.get_field_index("bytes")]
                for image, label in zip(encoded, batch.column(columns.label), strict=True):
                    if not image.is_valid or not label.is_valid:
                        what = f"no bytes in {columns.image}" if not image.is_valid else f"no {columns.label}"
                        raise InputError(f"{path}: row {row} has {what}; every row has an image's bytes and a label")
                    yield image.as_py(), label.as_py()
                    row += 1
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{path} can't be read: {str(error).splitlines()[0]}") from error


def _split(
    name: str, folder: Path, labels: np.ndarray, class_names: tuple[str, ...] | None, paths: list[Path]
) -> Split:
    ends, file_ends = np.load(folder / "ends.npy", mmap_mode="r"), np.load(folder / "file_ends.npy")

    def image(i: int) -> ImagePlace:
        number = int(np.searchsorted(file_ends, i, side="right"))
        row = i - (int(file_ends[number - 1]) if number else 0)
        begin, end = int(ends[i]), int(ends[i + 1])
        return ImagePlace(folder / "images.bin", f"{paths[number]}: row {row}", begin, end - begin)

    return Split(name, class_names, labels, "{:06d}".format, image)

"""ImageNet as ILSVRC 2012 hands it out: ILSVRC2012_img_train.tar (a tar of one tar a class), ILSVRC2012_img_val.tar and the
development kit ILSVRC2012_devkit_t12.tar.gz, each known by what it holds.

Images are read where they lie, nothing is extracted. Class numbers are the order of the sorted WordNet ids, as everybody
has them; the kit's own ILSVRC2012_IDs are others. Keys are those of the extracted folders, `n01440764/n01440764_10026`.
"""

import io
import re
import tarfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitlight.data.importers.archives import first_member
from vitlight.data.importers.split import ImagePlace, SourceOptions, Split, Texts, fingerprint
from vitlight.data.importers.staging import Staging
from vitlight.data.progress import progress
from vitlight.errors import InputError

__all__ = ["ImageNetArchives", "find"]

_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_META = "data/meta.mat"
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class Devkit:
    """What the development kit says."""

    wnids: tuple[str, ...]
    """Sorted: class i is wnids[i]."""
    words: tuple[str, ...]
    num_train_images: tuple[int, ...]
    val_labels: tuple[int, ...]
    """Class of validation image 1, 2, ..."""

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(f"{wnid} {words}" for wnid, words in zip(self.wnids, self.words, strict=True))


class ImageNetArchives:
    """Any of the archives; the kit is needed for the validation images, and names and checks the training classes."""

    kind = "ImageNet archives"
    has_class_names = True
    has_label_kinds = False

    def __init__(self, train: Path | None, val: Path | None, devkit: Path | None) -> None:
        self.train, self.val, self.devkit = train, val, devkit

    def fingerprint(self) -> str:
        return fingerprint((path.name, path) for path in (self.train, self.val, self.devkit) if path is not None)

    def splits(self, staging: Staging, options: SourceOptions) -> list[Split]:
        devkit = None if self.devkit is None else _read_devkit(self.devkit)
        splits = []
        if self.train is not None:
            splits.append(_train_split(self.train, devkit))
        if self.val is not None:
            assert devkit is not None
            splits.append(_val_split(self.val, devkit))
        return splits


def find(source: Path) -> ImageNetArchives | None:
    """Of a folder, or of the folder of an archive that is given alone. Raises InputError for validation without the kit."""
    given = [source] if source.is_file() else sorted(source.glob("*.tar"))
    kinds: dict[str, Path] = {}
    for path in given:
        first = first_member(path) or ""
        if _CLASS_TAR.fullmatch(first):
            kinds["train"] = path
        elif _VAL_IMAGE.fullmatch(Path(first).name):
            kinds["val"] = path
    if not kinds:
        return None
    folder = source.parent if source.is_file() else source
    for path in sorted([*folder.glob("*.tar.gz"), *folder.glob("*.tgz")]):
        if "devkit" in (first_member(path) or "").split("/")[0]:
            kinds["devkit"] = path
    if "val" in kinds and "devkit" not in kinds:
        raise InputError(
            f"{kinds['val']}: its classes are in ILSVRC2012_devkit_t12.tar.gz, which is not in {folder}; put it there"
        )
    return ImageNetArchives(kinds.get("train"), kinds.get("val"), kinds.get("devkit"))


def _train_split(path: Path, devkit: Devkit | None) -> Split:
    wnids: list[str] = []
    tar_of, offsets, sizes, names = array("L"), array("Q"), array("Q"), Texts()
    num_expected = len(devkit.wnids) if devkit else None
    with _open_tar(path) as outer, progress(f"Reading {path.name}", num_expected, "classes") as advance:
        for member in _members(outer, path):
            match = _CLASS_TAR.fullmatch(member.name)
            if match is None:
                raise InputError(
                    f"{path} holds {member.name}; the training archive holds one tar a class, as n01440764.tar"
                )
            wnid = match[1]
            file = outer.extractfile(member)
            assert file is not None
            with file, _open_tar(path, file) as inner:
                for image in _members(inner, path):
                    tar_of.append(len(wnids))
                    offsets.append(member.offset_data + image.offset_data)
                    sizes.append(image.size)
                    names.append(f"{wnid}/{Path(image.name).stem}")
            wnids.append(wnid)
            advance(1)
    if repeated := [wnid for wnid, count in Counter(wnids).items() if count > 1]:
        raise InputError(f"{path} holds {repeated[0]}.tar twice")
    counts = np.bincount(np.array(tar_of), minlength=len(wnids))
    if devkit is not None:
        _check_train(path, devkit, dict(zip(wnids, counts.tolist(), strict=True)))
    ordered = sorted(wnids)
    classes = np.array([ordered.index(wnid) for wnid in wnids])
    return _split(
        "train", path, devkit.class_names if devkit else tuple(ordered), classes[tar_of], names, offsets, sizes
    )


def _check_train(path: Path, devkit: Devkit, counts: dict[str, int]) -> None:
    for wnid, expected in zip(devkit.wnids, devkit.num_train_images, strict=True):
        if counts.get(wnid) != expected:
            raise InputError(
                f"{path} holds {counts.get(wnid, 0)} images of {wnid}, the devkit says {expected}; is the archive whole?"
            )
    if unknown := sorted(set(counts) - set(devkit.wnids)):
        raise InputError(f"{path} holds {unknown[0]}.tar, which is no class of the devkit")


def _val_split(path: Path, devkit: Devkit) -> Split:
    numbers, offsets, sizes, names = [], array("Q"), array("Q"), Texts()
    with _open_tar(path) as tar:
        for member in _members(tar, path):
            match = _VAL_IMAGE.fullmatch(Path(member.name).name)
            if match is None:
                raise InputError(
                    f"{path} holds {member.name}; the validation archive holds ILSVRC2012_val_00000001.JPEG ..."
                )
            number = int(match[1])
            if not 1 <= number <= len(devkit.val_labels):
                raise InputError(f"{path} holds {member.name}, the devkit knows {len(devkit.val_labels)} images")
            numbers.append(number)
            offsets.append(member.offset_data)
            sizes.append(member.size)
            names.append(f"{devkit.wnids[devkit.val_labels[number - 1]]}/{Path(member.name).stem}")
    if sorted(numbers) != list(range(1, len(devkit.val_labels) + 1)):
        raise InputError(
            f"{path} holds {len(set(numbers))} images, the devkit says {len(devkit.val_labels)}; is the archive whole?"
        )
    labels = np.array(devkit.val_labels)[np.array(numbers) - 1]
    return _split("val", path, devkit.class_names, labels, names, offsets, sizes)


def _split(
    name: str,
    path: Path,
    class_names: tuple[str, ...],
    labels: np.ndarray,
    keys: Texts,
    offsets: "array[int]",
    sizes: "array[int]",
) -> Split:
    def image(i: int) -> ImagePlace:
        return ImagePlace(path, f"{path}: {keys[i]}", offsets[i], sizes[i])

    if len(labels) == 0:
        raise InputError(f"{path} holds no image")
    return Split(name, class_names, labels, keys.__getitem__, image)


@contextmanager
def _open_tar(path: Path, inside: Any = None) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:") if inside is None else tarfile.open(fileobj=inside, mode="r:") as tar:
            yield tar
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"{path} can't be read: {error}; is the archive whole?") from error


def _members(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files. Raises InputError where the tar's end mark is missing: `tarfile` takes any damage for the end."""
    for member in tar:
        if member.isfile():
            yield member
    file: Any = tar.fileobj
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise InputError(f"{path} is cut off or damaged")


def _read_devkit(path: Path) -> Devkit:
    from scipy.io import loadmat

    held: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                for name in (_META, _GROUND_TRUTH):
                    if member.isfile() and member.name.endswith(name):
                        file = archive.extractfile(member)
                        assert file is not None
                        held[name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    if missing := [name for name in (_META, _GROUND_TRUTH) if name not in held]:
        raise InputError(f"{path} holds no {missing[0]}; the devkit of tasks 1 and 2 (t12) has it")
    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(held[_META]), squeeze_me=True)["synsets"])
        rows = [
            (str(row["WNID"]), int(row["ILSVRC2012_ID"]), str(row["words"]), int(row["num_train_images"]))
            for row in synsets
            if int(row["num_children"]) == 0
        ]
        truth = [int(line) for line in held[_GROUND_TRUTH].split()]
    except Exception as error:  # loadmat raises anything for a damaged file
        raise InputError(f"{path}: the classes can't be read: {type(error).__name__}: {error}") from error
    rows.sort()
    ids = {row[1]: i for i, row in enumerate(rows)}
    if sorted(ids) != list(range(1, len(rows) + 1)) or len({row[0] for row in rows}) != len(rows):
        raise InputError(f"{path}: {_META} must number its {len(rows)} classes from 1 on, each once")
    if unknown := [number for number in truth if number not in ids]:
        raise InputError(f"{path}: the ground truth has class {unknown[0]}; there are 1 to {len(rows)}")
    return Devkit(
        wnids=tuple(row[0] for row in rows),
        words=tuple(row[2] for row in rows),
        num_train_images=tuple(row[3] for row in rows),
        val_labels=tuple(ids[number] for number in truth),
    )

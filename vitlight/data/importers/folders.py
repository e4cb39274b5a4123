"""Folders with one folder a class, or `train/`, `val/` and `test/` with class folders in each."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from vitlight.data.importers.split import ImagePlace, SourceOptions, Split, Texts, fingerprint
from vitlight.data.importers.staging import Staging
from vitlight.data.progress import progress
from vitlight.data.tar import IMAGE_EXTENSIONS
from vitlight.errors import InputError
from vitlight.messages import say

__all__ = ["ClassFolders", "find"]

_SPLITS = ("train", "val", "validation", "test")
_SUFFIXES = IMAGE_EXTENSIONS | {"tif", "tiff"}


@dataclass
class _Listing:
    """The images of one split: their paths beneath it, keys and classes."""

    paths: Texts = field(default_factory=Texts)
    keys: Texts = field(default_factory=Texts)
    labels: list[int] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


class ClassFolders:
    """split -> its folder of class folders; the classes are those of the first, numbered in the order of their names."""

    kind = "class folders"
    has_class_names = True
    has_label_kinds = False

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders = folders
        self.class_names = tuple(_class_folders(next(iter(folders.values()))))
        self._listings: dict[str, _Listing] = {}

    def fingerprint(self) -> str:
        """Raises InputError for a class that the first split lacks, two images of one key, and where there is no image."""
        for split, folder in self.folders.items():
            self._listings[split] = _list_images(folder, self.class_names)
        return fingerprint(
            (f"{split}/{path}", self.folders[split] / path)
            for split, listing in self._listings.items()
            for path in listing.paths
        )

    def splits(self, staging: Staging, options: SourceOptions) -> list[Split]:
        splits = []
        for split, folder in self.folders.items():
            listing = self._listings[split]
            if listing.others:
                kinds = ", ".join(f"{count} {kind}" for kind, count in listing.others.most_common(5))
                say(f"{folder}: {listing.others.total()} files are no images of a class and were left out ({kinds})")

            def image(i: int, paths: Texts = listing.paths, folder: Path = folder) -> ImagePlace:
                path = folder / paths[i]
                return ImagePlace(path, str(path))

            splits.append(Split(split, self.class_names, np.array(listing.labels), listing.keys.__getitem__, image))
        return splits


def find(source: Path) -> ClassFolders | None:
    """A folder in which something other than `train` and the like lies beside `val` alone has that as its classes."""
    if not source.is_dir():
        return None
    inside = set(_class_folders(source))
    splits = [split for split in _SPLITS if split in inside]
    if splits and ("train" in inside or inside == set(splits)):
        if rest := sorted(inside - set(splits)):
            say(f"{source}: {', '.join(rest[:5])} is beside {', '.join(splits)} and was left out")
        return ClassFolders({split: source / split for split in splits})
    return ClassFolders({"train": source}) if inside else None


def _class_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list_images(folder: Path, class_names: tuple[str, ...]) -> _Listing:
    found = _class_folders(folder)
    if not found:
        raise InputError(f"{folder} holds no class folders")
    if unknown := sorted(set(found) - set(class_names)):
        raise InputError(f"{folder / unknown[0]} is not one of the {len(class_names)} classes of the first split")
    listing = _Listing()
    for path in folder.iterdir():
        if path.is_file():
            listing.others[path.suffix.lower() or path.name] += 1
    with progress(f"Listing {folder.name}", len(class_names), "classes") as advance:
        for label, name in enumerate(class_names):
            _add_class(listing, folder, name, label)
            advance(1)
    if not listing.labels:
        raise InputError(f"{folder} holds no image ({', '.join(sorted(_SUFFIXES))})")
    return listing


def _add_class(listing: _Listing, root: Path, name: str, label: int) -> None:
    for parent, files in _walk(root / name):
        below = Path(parent).relative_to(root).as_posix()
        images = []
        for file in sorted(files):
            suffix = Path(file).suffix
            if suffix.lower()[1:] in _SUFFIXES and not file.startswith("."):
                images.append((file, file.removesuffix(suffix).replace(".", "_"), suffix[1:]))
            else:
                listing.others[suffix.lower() or file] += 1
        stems = Counter(stem for _, stem, _ in images)
        leaves: dict[str, str] = {}
        for file, stem, suffix in images:
            leaf = stem if stems[stem] == 1 else f"{stem}-{suffix}"  # a.jpg beside a.png
            if leaf in leaves:
                raise InputError(f"{parent}: {leaves[leaf]} and {file} both get the key {leaf!r}; rename one of them")
            leaves[leaf] = file
            listing.paths.append(f"{below}/{file}")
            listing.keys.append(f"{below}/{leaf}")
            listing.labels.append(label)


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, files) of all folders beneath, sorted; none where the class has no folder."""

    def refuse(error: OSError) -> NoReturn:
        raise InputError(f"{error.filename} can't be read: {error.strerror}") from error

    if folder.is_dir():
        for parent, folders, files in os.walk(folder, onerror=refuse):
            folders.sort()
            yield parent, files

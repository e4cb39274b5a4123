"""`pack`: finds out what a source is, and writes its splits as shards, in parallel and so that a killed run goes on."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlight.data.columns import flush
from vitlight.data.importers import cifar, folders, idx, imagenet, npz, parquet
from vitlight.data.importers.convert import QUALITY, Conversion
from vitlight.data.importers.split import Source, SourceOptions, Split
from vitlight.data.importers.staging import Staging
from vitlight.data.importers.workers import ImageTask, ShardTask, run_shards
from vitlight.data.index import UNFINISHED_FILE, ShardIndex, build_index, load_index
from vitlight.data.progress import progress
from vitlight.data.shards import (
    DATASET_FILE,
    SAMPLES_PER_SHARD,
    STAGING_FOLDER,
    shard_path,
    unfinished,
    write_class_names,
)
from vitlight.errors import InputError
from vitlight.messages import say

__all__ = ["find_source", "pack"]

_FINDERS = (imagenet.find, idx.find, cifar.find, parquet.find, npz.find)
_SHARDS_PER_PROCESS = 4
_UNDERSTOOD = (
    "understood are folders of class folders (or of train/, val/ and test/ with class folders), ImageNet's archives "
    "(ILSVRC2012_img_train.tar, _img_val.tar, _devkit_t12.tar.gz), IDX files, CIFAR-10/100 for Python, Parquet as Hugging "
    "Face has it, and .npz"
)


def pack(
    source: Path,
    destination: Path,
    *,
    short_side: int | None = None,
    quality: int = QUALITY,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    shuffle: bool = True,
    seed: int = 0,
    classes: str | None = None,
    labels: str | None = None,
    processes: int | None = None,
    max_undecodable: int = 0,
    overwrite: bool = False,
) -> dict[str, ShardIndex]:
    """Packs whatever `source` holds into one folder of shards a split beneath `destination`; the indexes, by split.

    With `shuffle` a split's images are ordered by a hash of (seed, key), otherwise as the source has them. `classes` names
    the classes of a source that doesn't: `a,b,c`, or a file with one name a line. `labels` chooses among several kinds
    (`fine` or `coarse` of CIFAR-100, a column of Parquet). `processes`: by default one for each four shards, up to the
    number of cores; the shards' bytes don't depend on it. Several are spawned, so a script that calls this guards its main
    module by `if __name__ == "__main__"`. Images that can't be decoded are left out, named on stderr, up
    to `max_undecodable`.

    A run that was killed goes on, when it is repeated, at the first shard that isn't finished, and its result equals that
    of a run that wasn't. Raises InputError for settings out of range, for a source that isn't understood or has changed
    since, and for what can't be read or decoded.
    """
    for name, value, least in (
        ("short_side", short_side, 1), ("samples_per_shard", samples_per_shard, 1), ("seed", seed, 0),
        ("processes", processes, 1), ("max_undecodable", max_undecodable, 0),
    ):  # fmt: skip
        if value is not None and value < least:
            raise InputError(f"{name}={value} is not at least {least}")
    if not 1 <= quality <= 100:
        raise InputError(f"quality={quality} is not from 1 to 100")
    found = find_source(source)
    if source.is_dir() and destination.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{destination} is inside the source {source}; choose a destination outside it")
    if classes is not None and found.has_class_names:
        raise InputError(f"classes={classes} is for sources without names; {source} ({found.kind}) names its classes")
    if labels is not None and not found.has_label_kinds:
        raise InputError(f"labels={labels} chooses among kinds of labels; {source} ({found.kind}) has one kind")
    options = SourceOptions(None if classes is None else _class_names(classes), labels)
    plan: dict[str, Any] = {
        "source": found.kind,
        "source_name": source.resolve().name,
        "source_fingerprint": found.fingerprint(),
        "short_side": short_side,
        "quality": quality,
        "samples_per_shard": samples_per_shard,
        "shuffle": shuffle,
        "seed": seed,
        "classes": None if options.classes is None else list(options.classes),
        "labels": labels,
    }
    indexes: dict[str, ShardIndex] = {}
    with unfinished(destination, overwrite, plan):
        staging = Staging(destination / STAGING_FOLDER)
        num_undecodable = 0
        for split in found.splits(staging, options):
            allowed = max_undecodable - num_undecodable
            index = _pack_split(split, destination / split.name, plan, processes, allowed)
            num_undecodable += len(split.labels) - len(index)
            indexes[split.name] = index
        staging.remove()
    return indexes


def find_source(source: Path) -> Source:
    """What lies at `source`. Raises InputError where it is nothing that is understood, or several things."""
    if not source.exists():
        raise InputError(f"{source} does not exist; {_UNDERSTOOD}")
    found = [each for find in _FINDERS if (each := find(source))]
    if len(found) > 1:
        raise InputError(
            f"{source} holds {' and '.join(each.kind for each in found)}; keep them in folders of their own"
        )
    if not found and (folder := folders.find(source)):
        return folder
    if not found:
        raise InputError(f"{source} holds nothing that can be packed; {_UNDERSTOOD}")
    return found[0]


def _class_names(classes: str) -> tuple[str, ...]:
    if os.path.isfile(classes):  # noqa: PTH113  Path.is_file raises where a list is longer than a file's name may be
        return tuple(Path(classes).read_text(encoding="utf-8").splitlines())
    return tuple(name.strip() for name in classes.split(","))


def _pack_split(
    split: Split, folder: Path, plan: dict[str, Any], processes: int | None, max_undecodable: int
) -> ShardIndex:
    """The shards of one split, those that aren't there yet, their index, and `dataset.json`."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / UNFINISHED_FILE).exists():
        return load_index(folder)  # finished by an earlier run of this plan
    num_samples, per_shard = len(split.labels), int(plan["samples_per_shard"])
    _check_labels(split)
    num_shards = math.ceil(num_samples / per_shard)
    paths = [shard_path(folder, i) for i in range(num_shards)]
    conversion = Conversion(plan["short_side"], plan["quality"])
    with unfinished(folder, plan=plan):
        if split.class_names is not None:
            write_class_names(folder, split.class_names)
        order = _order(split, plan["seed"]) if plan["shuffle"] else np.arange(num_samples)

        def tasks() -> Iterator[ShardTask]:
            for i in missing:
                rows = order[i * per_shard : (i + 1) * per_shard].tolist()
                images = [ImageTask(split.key(row), int(split.labels[row]), split.image(row)) for row in rows]
                yield ShardTask(paths[i], images, conversion, max_undecodable)

        missing = [i for i, path in enumerate(paths) if not path.exists()]
        if processes is None:
            processes = max(1, min(os.cpu_count() or 1, len(missing) // _SHARDS_PER_PROCESS))
        if len(missing) < num_shards:
            say(f"{folder}: {num_shards - len(missing)} of {num_shards} shards are there already, packing the others")
        num_missing = sum(min(per_shard, num_samples - i * per_shard) for i in missing)
        with progress(f"Packing {split.name}", num_missing, "images") as advance:
            left_out = 0
            for undecodable in run_shards(tasks(), processes, advance):
                for reason in undecodable:
                    say(f"left out: {reason}")
                left_out += len(undecodable)
                _check_allowance(split, left_out, max_undecodable)
        index = build_index(paths, folder / "index")
        _check_allowance(split, num_samples - len(index), max_undecodable)
        _write_description(split, folder, plan, index)
        return index


def _check_labels(split: Split) -> None:
    lowest, highest = int(split.labels.min()), int(split.labels.max())
    if lowest < 0:
        raise InputError(
            f"{split.name}: label {lowest} of {split.key(int(split.labels.argmin()))!r}; labels start at 0"
        )
    if split.class_names is not None and highest >= len(split.class_names):
        raise InputError(
            f"{split.name}: label {highest} of {split.key(int(split.labels.argmax()))!r}, "
            f"but {len(split.class_names)} classes are named"
        )


def _check_allowance(split: Split, left_out: int, allowed: int) -> None:
    if left_out > allowed:
        raise InputError(
            f"{split.name}: {left_out} images can't be decoded; mend or remove them, or raise max_undecodable"
        )


def _order(split: Split, seed: int) -> NDArray[np.intp]:
    """The rows by a hash of their keys, which the seed salts: however the source has them, and with no class together.

    At seed 0 this is the index's own hash of the key.
    """
    salt = seed.to_bytes(hashlib.blake2b.SALT_SIZE, "little")
    hashes = np.empty(len(split.labels), np.uint64)
    for i in range(len(hashes)):
        key = split.key(i).encode(errors="surrogateescape")
        hashes[i] = int.from_bytes(hashlib.blake2b(key, digest_size=8, salt=salt).digest(), "little")
    return np.argsort(hashes, kind="stable")


def _write_description(split: Split, folder: Path, plan: dict[str, Any], index: ShardIndex) -> None:
    counts = np.bincount(index.label, minlength=index.num_classes).tolist()
    names = index.class_names or tuple(str(i) for i in range(len(counts)))
    described = {
        "split": split.name,
        "settings": plan,
        "num_samples": len(index),
        "num_undecodable": len(split.labels) - len(index),
        "num_samples_per_class": dict(zip(names, counts, strict=True)),
    }
    with (folder / DATASET_FILE).open("w", encoding="utf-8") as file:
        json.dump(described, file, indent=1, ensure_ascii=False)
        flush(file)

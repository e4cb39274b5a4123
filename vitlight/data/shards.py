"""Writes WebDataset tar shards; the index of any tar shards, ours or another's, is in `vitlight.data.index`.

A shard holds, for each sample, the part `KEY.cls` (its class as text) and the part `KEY.jpg` or `KEY.png` and so on.
Equal samples give equal bytes: times, owners and modes are fixed.
"""

import itertools
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlight.data.columns import flush
from vitlight.data.index import CLASS_NAMES_FILE, UNFINISHED_FILE, ShardIndex, build_index, load_index
from vitlight.data.progress import progress
from vitlight.data.tar import IMAGE_EXTENSIONS
from vitlight.errors import InputError

__all__ = [
    "DATASET_FILE", "SAMPLES_PER_SHARD", "STAGING_FOLDER", "Sample", "ShardIndex", "build_index", "describe_index",
    "load_index", "shard_path", "unfinished", "write_class_names", "write_shard", "write_shards",
]  # fmt: skip

SAMPLES_PER_SHARD = 2_000
DATASET_FILE = "dataset.json"  # beside packed shards: where they are from, the settings, the images of each class
STAGING_FOLDER = ".staging"  # in an unfinished destination: what a source had to be unpacked to
_KEY = re.compile(r"(?!__)(?:[^\0]*/)?[^./\0]+")


@dataclass(frozen=True)
class Sample:
    """One image to be written: the encoded file, its kind (`jpg`, `png`, ...), and its class, from 0."""

    key: str
    image: bytes
    extension: str
    label: int


def write_shards(
    samples: Iterable[Sample],
    folder: Path,
    *,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
    num_samples: int | None = None,
    title: str = "Writing",
) -> ShardIndex:
    """Writes `shard-000000.tar` and so on into `folder`, in the order given, and indexes them.

    Each shard is written beside, flushed and renamed, and the folder carries a mark until the index is there, by which
    `load_index` refuses it and this function knows what it may redo. `num_samples` is for the progress line alone.
    Raises InputError where `folder` holds anything else, and for samples that `build_index` would refuse.
    """
    if samples_per_shard < 1:
        raise InputError(f"samples_per_shard={samples_per_shard}: a shard holds at least 1 sample")
    with unfinished(folder, overwrite), progress(title, num_samples, "images") as advance:
        if class_names is not None:
            write_class_names(folder, class_names)
        rest = iter(samples)
        shards: list[Path] = []
        for first in rest:
            shards.append(shard_path(folder, len(shards)))
            chunk = itertools.chain((first,), itertools.islice(rest, samples_per_shard - 1))
            advance(write_shard(chunk, shards[-1]))
        if not shards:
            raise InputError(f"{folder}: there is no sample to write")
        return build_index(shards, folder / "index")


@contextmanager
def unfinished(folder: Path, overwrite: bool = False, plan: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Makes `folder` with a mark that is taken away when the block ends well, and empties it of an earlier try.

    A folder that carries the mark was left by a torn try; with `overwrite` also one that was finished is emptied. Only
    what this package writes is removed: shards, indexes, class names, and folders of these; anything else: InputError.

    With a `plan` (what defines the shards' bytes, as JSON) the mark holds it, and a torn try of an equal plan is kept: all
    but what was half written. One of another plan that has shards raises InputError naming the first difference, unless
    `overwrite`.
    """
    mark = folder / UNFINISHED_FILE
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder; choose another destination")
    kept = False
    if folder.exists() and any(folder.iterdir()):
        if not overwrite and not mark.exists():
            raise InputError(f"{folder}: not empty; choose another destination, or overwrite")
        foreign = [path for path in _all_files(folder) if not _is_ours(path.relative_to(folder))]
        if foreign:
            raise InputError(
                f"{folder}: holds {foreign[0].relative_to(folder)}, which vitlight did not write; choose another destination"
            )
        kept = _can_go_on(folder, plan, overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not kept:
            mark.touch()
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path != mark:
                    path.unlink()
            if plan is not None:
                mark.write_text(json.dumps(plan, indent=1), encoding="utf-8")
        for path in folder.glob("*.part"):
            path.unlink()
    except OSError as error:
        raise InputError(f"{folder}: can't write here ({error.strerror}); choose another destination") from error
    yield
    mark.unlink()


def _can_go_on(folder: Path, plan: Mapping[str, Any] | None, overwrite: bool) -> bool:
    """Whether what lies in `folder` is a torn try of this very plan."""
    try:
        begun = json.loads((folder / UNFINISHED_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    if begun == plan:
        return True
    if not overwrite and any(path.suffix == ".tar" for path in _all_files(folder)):
        now = plan or {}
        name = next((name for name in (*begun, *now) if begun.get(name) != now.get(name)), "plan")
        raise InputError(
            f"{folder}: shards with {name}={begun.get(name)} were begun here, this is {name}={now.get(name)}; "
            "repeat the settings to go on, or overwrite"
        )
    return False


def _all_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


_OURS = re.compile(
    r"(?:[^/]+/)?(?:shard-\d{6,}\.tar(?:\.part)?|index/.+"
    rf"|{re.escape(CLASS_NAMES_FILE)}|{re.escape(UNFINISHED_FILE)}|{re.escape(DATASET_FILE)})"
    rf"|{re.escape(STAGING_FOLDER)}/[^/]+/[^/]+"
)


def _is_ours(path: Path) -> bool:
    return _OURS.fullmatch(path.as_posix()) is not None


def write_class_names(folder: Path, class_names: Sequence[str]) -> None:
    """Writes `classes.txt`. Raises InputError for names that could not be read back: empty, of two lines, or twice."""
    for name in class_names:
        if len(name.splitlines()) != 1:
            raise InputError(f"class name {name!r}: a class name is one line of text, not empty")
    if len(set(class_names)) != len(class_names):
        repeated = next(name for i, name in enumerate(class_names) if name in class_names[:i])
        raise InputError(f"class name {repeated!r} comes twice; class names differ")
    (folder / CLASS_NAMES_FILE).write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.tar"


def write_shard(samples: Iterable[Sample], path: Path) -> int:
    """Writes one shard, beside and then renamed, one sample in memory at a time; the number of samples.

    Raises InputError for a key or an extension that could not be read back.
    """
    import webdataset  # imports torch: 1.3 s

    count = 0
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        with webdataset.TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT") as writer:
            for sample in samples:
                _check_sample(sample)
                writer.write({"__key__": sample.key, "cls": str(sample.label).encode(), sample.extension: sample.image})
                count += 1
        flush(file)
    beside.rename(path)
    return count


def _check_sample(sample: Sample) -> None:
    if not _KEY.fullmatch(sample.key):
        raise InputError(
            f"key {sample.key!r}: a key's last component has no dot and isn't empty, and a key doesn't begin with __"
        )
    if sample.extension not in IMAGE_EXTENSIONS:
        raise InputError(
            f"sample {sample.key!r}: extension {sample.extension!r} is none of {', '.join(sorted(IMAGE_EXTENSIONS))}"
        )


def describe_index(name: str, index: ShardIndex) -> str:
    """`train: 50,000 images of 10 classes in 25 shards, 112.3 MB, digest 0123456789ab: FOLDER`; shards are local files."""
    shards = [Path(shard) for shard in index.shards]
    megabytes = sum(path.stat().st_size for path in shards) / 1e6
    return (
        f"{name}: {len(index):,} images of {index.num_classes:,} classes in {len(shards):,} shards, "
        f"{megabytes:,.1f} MB, digest {index.digest[:12]}: {shards[0].parent}"
    )

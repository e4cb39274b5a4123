"""Writes WebDataset tar shards; the index of any tar shards, ours or another's, is in `vitlight.data.index`.

A shard holds, for each sample, the part `KEY.cls` (its class as text) and the part `KEY.jpg` or `KEY.png` and so on.
Equal samples give equal bytes: times, owners and modes are fixed.
"""

import itertools
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vitlight.data.columns import flush
from vitlight.data.index import CLASS_NAMES_FILE, UNFINISHED_FILE, ShardIndex, build_index, load_index
from vitlight.data.progress import progress
from vitlight.data.tar import IMAGE_EXTENSIONS
from vitlight.errors import InputError

__all__ = ["Sample", "ShardIndex", "build_index", "load_index", "unfinished", "write_shards"]

SAMPLES_PER_SHARD = 2_000
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
            _write_class_names(folder, class_names)
        rest = iter(samples)
        shards: list[Path] = []
        while chunk := list(itertools.islice(rest, samples_per_shard)):
            shards.append(folder / f"shard-{len(shards):06d}.tar")
            _write_shard(chunk, shards[-1])
            advance(len(chunk))
        if not shards:
            raise InputError(f"{folder}: there is no sample to write")
        return build_index(shards, folder / "index")


@contextmanager
def unfinished(folder: Path, overwrite: bool = False) -> Iterator[None]:
    """Makes `folder`, empty but for a mark that is taken away when the block ends well.

    A folder that carries the mark was left by a torn try and is emptied; with `overwrite` also one that was finished. Only
    what this package writes is removed: shards, indexes, class names, and folders of these; anything else: InputError.
    """
    mark = folder / UNFINISHED_FILE
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder; choose another destination")
    if folder.exists() and any(folder.iterdir()):
        if not overwrite and not mark.exists():
            raise InputError(f"{folder}: not empty; choose another destination, or overwrite")
        foreign = [path for path in _all_files(folder) if not _is_ours(path.relative_to(folder))]
        if foreign:
            raise InputError(
                f"{folder}: holds {foreign[0].relative_to(folder)}, which vitlight did not write; choose another destination"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != mark:
                path.unlink()
    except OSError as error:
        raise InputError(f"{folder}: can't write here ({error.strerror}); choose another destination") from error
    yield
    mark.unlink()


def _all_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


_OURS = re.compile(
    rf"(?:[^/]+/)?(?:shard-\d{{6}}\.tar(?:\.part)?|{re.escape(CLASS_NAMES_FILE)}|{re.escape(UNFINISHED_FILE)}"
    r"|index/[^/]+/(?:[a-z_]+\.npy|meta\.json))"
)


def _is_ours(path: Path) -> bool:
    return _OURS.fullmatch(path.as_posix()) is not None


def _write_class_names(folder: Path, class_names: Sequence[str]) -> None:
    for name in class_names:
        if len(name.splitlines()) != 1:
            raise InputError(f"class name {name!r}: a class name is one line of text, not empty")
    if len(set(class_names)) != len(class_names):
        repeated = next(name for i, name in enumerate(class_names) if name in class_names[:i])
        raise InputError(f"class name {repeated!r} comes twice; class names differ")
    (folder / CLASS_NAMES_FILE).write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")


def _write_shard(samples: Sequence[Sample], path: Path) -> None:
    import webdataset  # imports torch: 1.3 s

    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        with webdataset.TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT") as writer:
            for sample in samples:
                _check_sample(sample)
                writer.write({"__key__": sample.key, "cls": str(sample.label).encode(), sample.extension: sample.image})
        flush(file)
    beside.rename(path)


def _check_sample(sample: Sample) -> None:
    if not _KEY.fullmatch(sample.key):
        raise InputError(
            f"key {sample.key!r}: a key's last component has no dot and isn't empty, and a key doesn't begin with __"
        )
    if sample.extension not in IMAGE_EXTENSIONS:
        raise InputError(
            f"sample {sample.key!r}: extension {sample.extension!r} is none of {', '.join(sorted(IMAGE_EXTENSIONS))}"
        )

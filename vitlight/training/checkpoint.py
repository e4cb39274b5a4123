"""The folder of a run's checkpoints: each is whole or passed over, whenever the process that wrote it was killed.

A checkpoint is `step-N.ckpt`, a file, or a folder where every rank wrote its shard, with `step-N.digest` beside it: the
digest of the file, or a line with digest and name for each file of the folder. It is written under another name, flushed,
digested and then renamed. `best.ckpt`, `best.digest` and `best.json` are a second name of the best one so far.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vitlight.messages import say

__all__ = [
    "beside_checkpoint",
    "best_step",
    "checkpoint_path",
    "checkpoint_step",
    "commit_checkpoint",
    "digest_files",
    "discard",
    "drop_checkpoints",
    "flush_to_disk",
    "forget_best",
    "keep_as_best",
    "link_checkpoint",
    "newest_checkpoint",
    "remove_leftovers",
    "write_atomically",
]

_NAME = re.compile(r"step-(\d+)\.ckpt")
_BEST = "best.ckpt"
_torn_told: set[Path] = set()


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file: readers see the old content or the new, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text(text)
    flush_to_disk(beside)
    beside.replace(path)
    flush_to_disk(path.parent)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.ckpt"


def checkpoint_step(path: Path) -> int:
    """The step in a checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def beside_checkpoint(path: Path) -> Path:
    """Where a checkpoint is written before it gets its name."""
    return path.with_name(f".{path.name}.tmp")


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in a folder, newest first, whole or not."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.ckpt") if (match := _NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".digest")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def digest_files(folder: Path, files: Collection[Path]) -> dict[str, str]:
    """BLAKE2b of 128 bits of each file, by its path below `folder`."""
    return {file.relative_to(folder).as_posix(): _file_digest(file) for file in files}


def _digest(path: Path, known: Mapping[str, str] | None = None) -> str:
    if not path.is_dir():
        return _file_digest(path)
    digests = digest_files(path, _files(path)) if known is None else known
    return "\n".join(f"{digest}  {name}" for name, digest in sorted(digests.items()))


def _fault(path: Path) -> str | None:
    """Why a checkpoint isn't whole, None where it is."""
    digest = _digest_path(path)
    if not digest.is_file():
        return "it has no digest"
    return None if digest.read_text().strip() == _digest(path) != "" else "its digest is another"


@rank_zero_only
def _tell_torn(path: Path, fault: str) -> None:
    if path not in _torn_told:
        _torn_told.add(path)
        say(f"vitlight: {path} is not whole and is passed over: {fault}")


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """(step, path) of the newest whole checkpoint, by step, or None. Each that is passed over is named once on stderr."""
    for step, path in _numbered(folder):
        fault = _fault(path)
        if fault is None:
            return step, path
        _tell_torn(path, fault)
    return None


def commit_checkpoint(beside: Path, path: Path, digests: Mapping[str, str] | None = None) -> None:
    """Give what was written `beside` its name, with its digest, once all of it is on the disk. digests: of all the files of
    a folder, where those who wrote them have taken and flushed them."""
    for file in _files(beside) if beside.is_dir() and digests is None else ():
        flush_to_disk(file)
    flush_to_disk(beside)
    write_atomically(_digest_path(path), _digest(beside, digests))
    if beside.is_dir() or path.is_dir():  # a rename replaces files only
        _remove(path)
    beside.replace(path)
    flush_to_disk(path.parent)


def drop_checkpoints(folder: Path, newest: int, count: int, kept: Collection[int]) -> None:
    """Drop all but the `count` newest up to step `newest`, which was just saved, and those of the steps `kept`. Those beyond
    `newest` are torn, or the run would have gone on from them."""
    numbered = _numbered(folder)
    recent = [step for step, _ in numbered if step <= newest][:count]
    for step, path in numbered:
        if step > newest or (step not in recent and step not in kept):
            discard(path)


def discard(path: Path) -> None:
    """Remove a checkpoint and its digest."""
    _remove(path)
    _digest_path(path).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """A folder first loses its name, so that a kill leaves no part of it under that name."""
    if path.is_dir() and not path.name.startswith("."):
        beside = beside_checkpoint(path.with_name(f"{path.name}.old"))
        path = path.rename(beside)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a kill left half-written, and digests whose checkpoint never got its name. Only for the run's holder."""
    for path in folder.glob(".*.tmp"):
        _remove(path)
    for digest in folder.glob("*.digest"):
        if not digest.with_suffix(".ckpt").exists():
            digest.unlink()


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without second names
        shutil.copyfile(source, target)
        flush_to_disk(Path(target))


def link_checkpoint(path: Path, folder: Path) -> None:
    """Give a whole checkpoint, and its digest, a second name in another folder; the checkpoint comes last."""
    target = folder / path.name
    beside = beside_checkpoint(target)
    _remove(beside)
    if path.is_dir():
        shutil.copytree(path, beside, copy_function=_link_or_copy)
    else:
        _link_or_copy(str(path), str(beside))
    write_atomically(_digest_path(target), _digest_path(path).read_text())
    beside.replace(target)


def keep_as_best(path: Path, value: float) -> None:
    """Make a whole checkpoint `best.ckpt` too. best.json, with its step and `value`, comes last: until it is there,
    `best_step` tells of the one before, or of none."""
    best = path.with_name(_BEST)
    beside = beside_checkpoint(best)
    _remove(beside)
    if path.is_dir():
        shutil.copytree(path, beside, copy_function=_link_or_copy)
        _remove(best)
    else:
        _link_or_copy(str(path), str(beside))
    beside.replace(best)
    write_atomically(_digest_path(best), _digest_path(path).read_text())
    write_atomically(best.with_suffix(".json"), json.dumps({"step": checkpoint_step(path), "val/top1": value}))


def forget_best(folder: Path) -> None:
    """Remove `best.ckpt` and what lies beside it."""
    (folder / _BEST).with_suffix(".json").unlink(missing_ok=True)
    discard(folder / _BEST)


def best_step(folder: Path) -> int | None:
    """The step of `best.ckpt`, None where there is none."""
    path = (folder / _BEST).with_suffix(".json")
    return int(json.loads(path.read_text())["step"]) if path.is_file() else None

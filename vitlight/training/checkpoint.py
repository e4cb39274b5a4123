"""Checkpoints that are whole or absent: written beside, flushed, digested, then renamed."""

import hashlib
import os
import re
from pathlib import Path

import lightning.pytorch as pl

__all__ = ["newest_checkpoint", "save_checkpoint"]

_NAME = re.compile(r"step-(\d+)\.ckpt")
_KEPT = 2


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".digest")


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in a folder, newest first, whole or not."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.ckpt") if (match := _NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """(step, path) of the newest checkpoint whose digest is right, or None."""
    for step, path in _numbered(folder):
        digest = _digest_path(path)
        if digest.is_file() and digest.read_text().strip() == _digest(path):
            return step, path
    return None


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


def save_checkpoint(trainer: pl.Trainer, folder: Path, step: int) -> None:
    """Save the trainer's state as `step-N.ckpt` and drop all but the newest two. Called by every rank."""
    path = folder / f"step-{step:09d}.ckpt"
    beside = folder / f".{path.name}.tmp"
    trainer.save_checkpoint(beside)
    if trainer.is_global_zero:
        flush_to_disk(beside)
        write_atomically(_digest_path(path), _digest(beside))
        beside.replace(path)
        flush_to_disk(folder)
        for _, old in _numbered(folder)[_KEPT:]:
            old.unlink()
            _digest_path(old).unlink(missing_ok=True)

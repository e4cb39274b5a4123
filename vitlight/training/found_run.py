"""From what people name, a run directory or a checkpoint, to the checkpoint and the settings it was trained with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import yaml

from vitlight.data.labels import LabelSource, read_class_names
from vitlight.data.shard_set import ShardSet
from vitlight.data.sources import is_remote, resolve_shards
from vitlight.data.training_set import named_sources
from vitlight.errors import InputError
from vitlight.models.checkpoint_folder import is_checkpoint_folder, read_checkpoint_folder
from vitlight.training.checkpoint import newest_checkpoint
from vitlight.training.pretrained import weights_digest
from vitlight.training.record import RunDirectory

__all__ = [
    "Which",
    "checkpoint_digest",
    "class_names_of",
    "find_checkpoint",
    "read_checkpoint",
    "read_experiment",
    "run_of",
]

Which = Literal["best", "last"]

_ENTRIES = ("state_dict", "vitlight", "pytorch-lightning_version")


def find_checkpoint(source: Path, which: Which = "best") -> Path:
    """The checkpoint that `source` names: itself, or of a run directory its best one on `val`, where it keeps that
    (run.keep_best), else its newest whole one; with `which="last"` always the latter.

    Raises InputError where `source` is neither, and where a run has no whole checkpoint.
    """
    if which not in get_args(Which):
        raise InputError(f"which={which!r} is not one of {', '.join(get_args(Which))}")
    if source.is_file() or is_checkpoint_folder(source):
        return source
    if not source.exists():
        raise InputError(f"{source} does not exist; name a run directory, a checkpoint or a file of weights")
    run = RunDirectory(source)
    if not run.experiment_path.is_file():
        inside = sorted(path.parent.name for path in source.glob("*/experiment.yaml"))
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        hint = f": it holds runs; name one of {', '.join(inside[:3])}{more}" if inside else ""
        raise InputError(f"{source} is no run directory (it has no experiment.yaml){hint}")
    best = run.checkpoints / "best.ckpt"
    if which == "best" and best.exists():
        return best
    newest = newest_checkpoint(run.checkpoints)
    if newest is None:
        raise InputError(f"run {source} has no whole checkpoint yet; go on with `vitlight fit`, or name another run")
    return newest[1]


def run_of(source: Path) -> Path | None:
    """The run directory that `source` is or, a checkpoint, lies in; or the folder where experiment.yaml was copied beside a
    checkpoint."""
    parent = source.absolute().parent
    return next((folder for folder in (source, parent.parent, parent) if (folder / "experiment.yaml").is_file()), None)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """`state_dict` of a run's checkpoint, and what the run says of itself in `vitlight`; neither the optimizer's state nor,
    where the run evaluates an average, the raw weights are read. Raises InputError where it is none or is torn."""
    try:
        if is_checkpoint_folder(path):
            return read_checkpoint_folder(path, _ENTRIES)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, OSError, ...
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"checkpoint {path} can't be read: {reason}") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "vitlight"} <= checkpoint.keys():
        raise InputError(f"{path} is no checkpoint of a run; of a file of weights say the arch (--arch)")
    return {name: checkpoint[name] for name in _ENTRIES if name in checkpoint}


def checkpoint_digest(path: Path) -> str:
    """Digest of a checkpoint. Raises InputError where the one that was written beside it is another: it is torn."""
    digest = weights_digest(str(path), None, path.parent)
    beside = path.with_suffix(".digest")
    if path.is_file() and beside.is_file() and beside.read_text().strip() != digest:
        raise InputError(f"checkpoint {path} is not whole: its digest is not the one in {beside.name}; name another")
    return digest


def read_experiment(run: Path) -> dict[str, Any]:
    """The resolved settings of a run, group by group. Raises InputError where they can't be read."""
    path = run / "experiment.yaml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} can't be read: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(settings, dict) or not all(isinstance(settings.get(group), dict) for group in ("model", "data")):
        raise InputError(f"{path} is no experiment of vitlight: it has no settings of model and data")
    return settings


def class_names_of(data: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes of a run's data, where they can be had with no network: of data.labels.class_file, or of
    `classes.txt` in the folder of the shards or their index. None where they can't, or where some class has no name."""
    labels = LabelSource(**data["labels"])
    try:
        if labels.class_file is not None:
            names = read_class_names(Path(labels.class_file)).names
        else:
            first = named_sources(data["train"])[0][0]
            texts = [first] if isinstance(first, str) else first
            if any(is_remote(text) for text in texts) and data["index_dir"] is None:
                return None
            shards = tuple(texts) if any(map(is_remote, texts)) else resolve_shards(texts)
            index_dir = Path(data["index_dir"]) if data["index_dir"] else None
            classes = ShardSet(shards, index_dir, labels).classes
            if classes is None:
                return None
            names = classes.names
    except InputError:  # the data were moved
        return None
    return names if len(names) >= data["num_classes"] else None

"""Fine-tuning runs as one table: checkpoints by tasks, at the settings that were best on the held-out images.

A task is the folder of its training shards (`data/pets/train` is `pets`) and the part of them that is trained on, a
checkpoint what `model.weights` names. Of runs of one checkpoint and task that differ in more than their seed, the
settings with the highest mean `val_top1` are taken (of equal ones the lowest rate's); `top1` on the test set chooses
nothing. Runs on all training images (`data.val_fraction=0`) have no such part, and stand for their cell alone: they are what
the choice was made for.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from vitlight.analysis.quantities import format_count
from vitlight.analysis.run_settings import read_config, training_settings
from vitlight.analysis.runs import find_run_dirs, read_run
from vitlight.analysis.summary import earlier_copies
from vitlight.errors import InputError

__all__ = ["TransferCell", "TransferTable", "build_transfer_table"]

_SPLITS = ("train", "training")
_OF_COPIES = ["run_id", "data_digest", "finished_at"]


@dataclass(frozen=True)
class _Run:
    row: tuple[str, str, str, int]  # checkpoint, its digest, arch, image size
    task: str
    data: str  # digest
    settings: str
    lr: float | None
    record: dict[str, Any]
    path: Path


@dataclass(frozen=True)
class TransferCell:
    """One checkpoint on one task. values: an accuracy in [0, 1] a seed, on `eval_split`: `test`, or `val` where the runs
    have no test set. num_settings: of how many these were chosen, by
    val_top1, the mean of theirs on held-out images (None where there are none); lr: the learning rate. is_edge: it is the
    lowest or highest of several. runs: the directories."""

    checkpoint: str
    arch: str
    image_size: int
    task: str
    values: tuple[float, ...]
    num_settings: int
    val_top1: float | None
    lr: float | None
    is_edge: bool
    eval_split: str
    num_eval_samples: int | None
    runs: tuple[Path, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class TransferTable:
    """rows: checkpoint, arch and image size of each; tasks: the columns; cells by (row, task). left_out: lines on runs that
    are in no cell."""

    rows: tuple[tuple[str, str, int], ...]
    tasks: tuple[str, ...]
    cells: dict[tuple[tuple[str, str, int], str], TransferCell]
    left_out: tuple[str, ...] = field(default=())

    def mean(self, row: tuple[str, str, int]) -> float | None:
        """Over the tasks; None where one is missing."""
        found = [self.cells[row, task].mean for task in self.tasks if (row, task) in self.cells]
        return statistics.fmean(found) if len(found) == len(self.tasks) else None


def build_transfer_table(sources: Iterable[str | Path], mean_class_tasks: Sequence[str] = ()) -> TransferTable:
    """The table of the run directories at or beneath `sources`.

    mean_class_tasks: those whose accuracy is the mean over the classes, mean_class_top1, in place of top1. Raises InputError
    for a path without runs, a task of that name that there is not, no finished run at all, and no cell that can be shown.
    """
    runs, left_out = _read(find_run_dirs(list(sources)))
    if not runs:
        raise InputError(
            f"no finished run with data.test or data.val_fraction: {'; '.join(left_out) or 'none was found'}"
        )
    tasks = _named_tasks(runs)
    names = tuple(sorted({tasks[run.task, run.data] for run in runs}))
    if unknown := [task for task in mean_class_tasks if task not in names]:
        raise InputError(f"--mean-class: {unknown[0]} is none of the tasks {', '.join(names)}")
    groups: dict[tuple[tuple[str, str, int], str], list[_Run]] = {}
    labels = _named_checkpoints(runs)
    for run in runs:
        row = (labels[run.row[:2]], *run.row[2:])
        groups.setdefault((row, tasks[run.task, run.data]), []).append(run)
    cells = {}
    for (row, task), members in groups.items():
        cell = _cell(row, task, members, "mean_class_top1" if task in mean_class_tasks else "top1", left_out)
        if cell is not None:
            cells[row, task] = cell
    if not cells:
        raise InputError(f"no cell can be shown: {'; '.join(left_out)}")
    rows = tuple(sorted({row for row, _ in cells}))
    return TransferTable(
        rows, tuple(task for task in names if any(t == task for _, t in cells)), cells, tuple(left_out)
    )


def _read(run_dirs: Sequence[Path]) -> tuple[list[_Run], list[str]]:
    runs, left_out = [], []
    done: dict[Path, dict[str, Any]] = {}
    not_done: dict[str, list[str]] = {}
    for path in run_dirs:
        record = read_run(path)
        if record["status"] == "done":
            done[path] = record
        else:
            reason = f": {record['reason'].splitlines()[0]}" if record.get("reason") else ""
            not_done.setdefault(record["status"], []).append(f"{path}{reason}")
    copies = _copies(done)
    for path, record in done.items():
        if path in copies:
            continue
        try:
            config = read_config(path)
            model, data, settings = config["model"], config["data"], training_settings(config)
        except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            left_out.append(f"{path}: its experiment.yaml can't be used: {error!r}")
            continue
        runs.append(
            _Run(
                row=(
                    str(model.get("weights") or "from scratch"),
                    str(model.get("weights_digest") or ""),
                    str(record["arch"]),
                    int(record["image_size"] or 0),
                ),
                task=_task(data["train"]) + _part(data),
                data=str(record["data_digest"]),
                settings=json.dumps(settings, sort_keys=True, default=str),
                lr=record["lr"],
                record=record,
                path=path,
            )
        )
    for status, those in not_done.items():
        left_out.append(f"{format_count(len(those), 'run')} {status}, such as {those[0]}")
    if copies:
        left_out.append(f"{format_count(len(copies), 'run')} found in another folder too, such as {copies[0]}")
    return runs, left_out


def _copies(records: Mapping[Path, Mapping[str, Any]]) -> list[Path]:
    """Those of the runs' directories that are left out for a copy that ended later, or comes later."""
    told = pd.DataFrame([[record[name] for name in _OF_COPIES] for record in records.values()], columns=_OF_COPIES)
    return [path for path, is_copy in zip(records, earlier_copies(told), strict=True) if is_copy]


def _task(source: Any) -> str:
    """`pets` of data/pets/train; of several sources their names together."""
    if isinstance(source, (list, dict)):
        return "+".join(dict.fromkeys(_task(each) for each in source))
    parts = [part for part in str(source).replace("\\", "/").split("/") if part and "*" not in part and "{" not in part]
    names = [part for part in parts if part not in _SPLITS]
    return names[-1] if names else str(source)


def _part(data: Mapping[str, Any]) -> str:
    """Of the training images, as of a task with few: ` 1000`, ` 10 a class`, ` 5 %`; nothing for all."""
    number, per_class = data.get("num_train_samples"), data.get("num_train_samples_per_class")
    if number is not None:
        return f" {number}"
    if per_class is not None:
        return f" {per_class} a class"
    fraction = data.get("train_fraction")
    return "" if fraction is None else f" {100 * fraction:g} %"


def _named_tasks(runs: Sequence[_Run]) -> dict[tuple[str, str], str]:
    """(task, data digest) -> column; where one name stands for several sets, it is followed by a part of the digest."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        seen.setdefault(run.task, set()).add(run.data)
    return {
        (task, data): task if len(digests) == 1 else f"{task} ({data[:6]})"
        for task, digests in seen.items()
        for data in digests
    }


def _named_checkpoints(runs: Sequence[_Run]) -> dict[tuple[str, str], str]:
    """(source, digest) -> label. One content is one checkpoint, by whatever path; two under one path are told apart."""
    by_digest: dict[str, str] = {}
    for run in runs:
        source, digest = run.row[:2]
        by_digest.setdefault(digest, source)
    sources = list(by_digest.values())
    return {
        run.row[:2]: source if sources.count(source) == 1 else f"{source} ({run.row[1][:6]})"
        for run in runs
        for source in [by_digest[run.row[1]]]
    }


def _cell(
    row: tuple[str, str, int], task: str, members: Sequence[_Run], metric: str, left_out: list[str]
) -> TransferCell | None:
    """Of the runs of a checkpoint on a task those with the settings to show; None, with a line, where none can be chosen."""
    by_settings: dict[str, list[_Run]] = {}
    for run in members:
        by_settings.setdefault(run.settings, []).append(run)
    groups = list(by_settings.values())
    final = [group for group in groups if group[0].record["val_top1"] is None]
    chosen = _best(final or groups)
    if chosen is None:
        rates = ", ".join(str(group[0].lr) for group in final or groups)
        left_out.append(
            f"{task} of {row[0]}: {len(final or groups)} settings (rates {rates}), and no held-out images to choose by; "
            f"name the folder of one"
        )
        return None
    values = [run.record[metric] for run in sorted(chosen, key=lambda run: run.record["seed"] or 0)]
    if any(value is None for value in values):
        left_out.append(f"{task} of {row[0]}: {chosen[0].path} has no {metric}")
        return None
    searched = sorted({group[0].lr for group in groups if group[0].lr is not None})
    return TransferCell(
        checkpoint=row[0],
        arch=row[1],
        image_size=row[2],
        task=task,
        values=tuple(float(value) for value in values),
        num_settings=len(groups) - (len(final) if len(final) < len(groups) else 0),
        val_top1=_mean_val(chosen),
        lr=chosen[0].lr,
        is_edge=len(searched) > 1 and chosen[0].lr in (searched[0], searched[-1]),
        eval_split=str(chosen[0].record["eval_split"]),
        num_eval_samples=chosen[0].record["num_eval_samples"],
        runs=tuple(run.path for run in chosen),
    )


def _best(groups: Sequence[list[_Run]]) -> list[_Run] | None:
    """The group with the highest mean val_top1, of equal ones that with the lowest rate; None where there are several and no
    val_top1."""
    if len(groups) == 1:
        return groups[0]
    means = [_mean_val(group) for group in groups]
    if any(mean is None for mean in means):
        return None
    ranked = zip(groups, means, strict=True)
    return max(ranked, key=lambda pair: (pair[1] or -math.inf, -(pair[0][0].lr or 0.0)))[0]


def _mean_val(group: Sequence[_Run]) -> float | None:
    values = [run.record["val_top1"] for run in group]
    return statistics.fmean(values) if all(value is not None for value in values) else None

"""`plan.json` in a sweep's directory: what its cells resolved to, so that looking at a sweep takes no imports of seconds
and no resolving of cells at some 50 ms each.

It stands for the plan where nothing has changed that the plan comes from: the cells' arguments, the files they name, the
shards, and the code. Runs are never started from it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vitlight.errors import InputError
from vitlight.sweep.added import read_added
from vitlight.sweep.plan import PlannedCell, RecordedRun, complete_args, first_of_each_run, sweep_directory
from vitlight.sweep.search_journal import settled
from vitlight.sweep.space import Cell, Sweep
from vitlight.sweep.whole_files import replace_whole
from vitlight.training.run_facts import RunFacts

__all__ = ["PLAN", "likely_directory", "record_plan", "recorded_plan"]

PLAN = "plan.json"
_FORMAT = 1
_SETTINGS_FILES = (".yaml", ".yml", ".json")
_READ_BYTES = 1 << 20  # of larger files size and time of change are looked at
_PACKAGES = ("torch", "lightning", "jsonargparse", "timm")
_OF_RUN = tuple(each.name for each in fields(RunFacts) if each.name != "run_dir")


def record_plan(planned: Sequence[PlannedCell]) -> None:
    """Write down what `plan_sweep` has found, in the sweep's directory; nothing where that can't be written."""
    directory = sweep_directory(planned)
    content = {
        "format": _FORMAT,
        "directory": str(directory),
        "code": _code_digest(),
        "files": _stamps(_named_files(word for item in planned for word in item.cell.args)),
        "data": _data_stamps(planned),
        "cells": {_key(item.cell): _run_values(item) for item in planned},
    }
    with suppress(OSError):
        replace_whole(directory / PLAN, json.dumps(content).encode())


def recorded_plan(
    sweep: Sweep, directory: Path, is_checked: bool, root: Path | None = None
) -> list[PlannedCell] | None:
    """The plan of `sweep` as it was written down in `directory`; None where there is none of these very cells.

    is_checked: None also where a file, the shards or the code have changed since. Otherwise it is taken for what it is,
    a record of the runs in the directory.
    """
    try:
        content = json.loads((directory / PLAN).read_bytes())
        sweep = replace(sweep if sweep.search is None else settled(sweep, directory), added=read_added(directory))
        cells = sweep.cells()
        if content["format"] != _FORMAT or {_key(cell) for cell in cells} != content["cells"].keys():
            return None
        if is_checked and not (content["directory"] == str(directory) and _is_current(content)):
            return None
        return first_of_each_run(
            [
                PlannedCell(cell, complete_args(sweep, cell, root), _run(values, directory), values["own_train_flops"])
                for cell in cells
                for values in [content["cells"][_key(cell)]]
            ]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def likely_directory(sweep: Sweep, root: Path | None) -> Path:
    """Where the sweep's runs most probably lie, found without resolving a cell: as its arguments, then `root`, then the
    files that they name say."""
    cell = sweep.cells()[0]
    settings = cell.settings
    words = dict(word.removeprefix("--").partition("=")[::2] for word in cell.args)
    name = settings.get("run.name") or words.get("run.name") or sweep.name
    folder = settings.get("run.root") or words.get("run.root") or root
    if folder is None:
        in_files = [_read_settings(path) for path in _named_files(cell.args)]
        roots = [group["run"].get("root") for group in in_files if isinstance(group.get("run"), dict)]
        folder = next((each for each in reversed(roots) if each), "runs")
    return Path(str(folder)) / str(name)


def _key(cell: Cell) -> str:
    return hashlib.sha256("\0".join(cell.args).encode()).hexdigest()[:20]


def _run_values(planned: PlannedCell) -> dict[str, Any]:
    run, trainer = planned.run, None
    values = {name: getattr(run, name) for name in _OF_RUN} | {"own_train_flops": planned.own_train_flops}
    if run.settings is not None:
        from vitlight.models import arch_family
        from vitlight.sweep.preflight import num_devices

        its = run.settings.trainer
        values["family"] = arch_family(run.arch)
        trainer = {
            "num_nodes": int(its.num_nodes or 1),
            "devices": num_devices(planned) // int(its.num_nodes or 1),
            "precision": str(its.precision),
            "accumulate_grad_batches": its.accumulate_grad_batches,
        }
    return values | {"trainer": trainer}


def _run(values: dict[str, Any], directory: Path) -> RecordedRun:
    settings = None if values["trainer"] is None else SimpleNamespace(trainer=SimpleNamespace(**values["trainer"]))
    return RecordedRun(
        **{name: values[name] for name in _OF_RUN},
        run_dir=directory / values["run_id"],
        family=values.get("family"),
        settings=settings,
    )


def _is_current(content: dict[str, Any]) -> bool:
    if content["code"] != _code_digest() or _stamps(map(Path, content["files"])) != content["files"]:
        return False
    return all(_data_stamp(source) == stamp for source, stamp in content["data"])


def _code_digest() -> str:
    """Of vitlight's own files, by their sizes and times of change, and the versions of what cells are resolved with."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for folder, subfolders, files in os.walk(package):
        subfolders[:] = sorted(name for name in subfolders if name != "__pycache__")
        for path in (Path(folder, name) for name in sorted(files) if name.endswith(".py")):
            status = path.stat()
            digest.update(f"{path.relative_to(package)} {status.st_size} {status.st_mtime_ns}\n".encode())
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            digest.update(f"{name} {version(name)}\n".encode())
    return digest.hexdigest()[:20]


def _named_files(words: Iterable[str]) -> Iterator[Path]:
    """Files of settings among arguments, and those that these name in turn, each once."""
    waiting = [word.rpartition("=")[2] for word in dict.fromkeys(words)]
    seen: set[str] = set()
    while waiting:
        text = waiting.pop(0)
        if text in seen or not text.endswith(_SETTINGS_FILES) or not Path(text).is_file():
            continue
        seen.add(text)
        yield Path(text)
        waiting += _texts(_read_settings(Path(text)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict | list):
            yield from _texts(each)


def _read_settings(path: Path) -> dict[str, Any]:
    """What a YAML file holds; nothing where it can't be read, which resolving the cells tells."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(path.read_bytes(), loader) if path.stat().st_size <= _READ_BYTES else None
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _stamps(paths: Iterable[Path]) -> dict[str, str]:
    """Content of small files, size and time of change of large ones; "" of those that are gone."""
    stamps = {}
    for path in paths:
        stamps[str(path)] = ""
        with suppress(OSError):
            status = path.stat()
            is_large = status.st_size > _READ_BYTES
            content = f"{status.st_size} {status.st_mtime_ns}".encode() if is_large else path.read_bytes()
            stamps[str(path)] = hashlib.sha256(content).hexdigest()[:20]
    return stamps


def _data_stamps(planned: Sequence[PlannedCell]) -> list[tuple[Any, str]]:
    """[(source, stamp)] of every source that some cell trains on or is evaluated on."""
    found: dict[str, Any] = {}
    for item in planned:
        if isinstance(item.run, RecordedRun) or item.run.settings is None:
            continue
        data = item.run.settings.data
        train = list(data.train) if isinstance(data.train, dict) else [data.train]
        for shards in [*train, *([data.test] if data.test else [])]:
            index_dir = None if data.index_dir is None else str(data.index_dir)
            source = [shards, index_dir, {**vars(data.labels)}, data.image_part]
            found[json.dumps(source)] = source
    return [(source, _data_stamp(source)) for source in found.values()]


def _data_stamp(source: Sequence[Any]) -> str:
    """What the index of local shards is found by, their names, sizes and times of change among it. Of remote ones nothing
    is asked: their URLs say which they are."""
    from vitlight.data.labels import LabelSource
    from vitlight.data.shard_set import ShardSet
    from vitlight.data.sources import is_remote, resolve_shards

    shards, index_dir, labels, image_part = source
    if any(is_remote(part) for text in _texts(shards) for part in text.split("::")):
        return "remote"
    try:
        found = ShardSet(
            resolve_shards(shards), None if index_dir is None else Path(index_dir), LabelSource(**labels), image_part
        )
        return found.fingerprint + ("" if found.classes is None else found.classes.digest())
    except InputError:
        return "missing"

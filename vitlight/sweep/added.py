"""Cells beside the grid: `added.jsonl` in the sweep's directory, one line each, which every command reads with the file.

A line holds all parameters of its cell, those that the file fixes included, so that it stays what it was when the file
changes. A cell that the file comes to have as well is the file's.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError
from vitlight.training.locks import take_lock

if TYPE_CHECKING:
    from vitlight.sweep.space import Sweep, Value

__all__ = ["ADDED", "append_added", "combinations", "parse_setting", "read_added"]

ADDED = "added.jsonl"


def read_added(directory: Path) -> tuple[dict[str, Value], ...]:
    """The parameters of each added cell, in the order in which they were added; a torn last line is no cell."""
    try:
        lines = (directory / ADDED).read_bytes().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise InputError(
            f"{directory / ADDED} can't be read ({error.strerror}); it has the sweep's added cells"
        ) from None
    try:
        return tuple(dict(json.loads(line)["parameters"]) for line in lines)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{directory / ADDED} has a line that is no cell ({error}); remove that line") from None


def append_added(directory: Path, cells: Sequence[Mapping[str, Value]], known: int) -> None:
    """Add cells to the `known` ones. InputError: somebody else adds or has added some, or the directory can't be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = take_lock(directory / f".{ADDED}.lock")
    except OSError as error:
        raise InputError(f"{directory} can't be written ({error.strerror}); nothing was added") from None
    if lock is None:
        raise InputError(f"somebody else is adding cells to {directory}; try again")
    try:
        if len(read_added(directory)) != known:
            raise InputError(f"somebody else has just added cells to {directory}; try again")
        with (directory / ADDED).open("ab") as file:
            if file.tell():
                _end_last_line(directory / ADDED)
            file.write(b"".join(json.dumps({"parameters": dict(cell)}).encode() + b"\n" for cell in cells))
            file.flush()
            os.fsync(file.fileno())
    finally:
        os.close(lock.fd)


def _end_last_line(path: Path) -> None:
    """Cut off what a kill has left of a line."""
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)


def parse_setting(word: str) -> tuple[str, Value]:
    """`--model.optimizer.lr=1.0e-3` -> its name and its value, read as in a sweep file. InputError: no such form."""
    import yaml

    from vitlight.sweep.space import check_value

    name, equals, text = word.removeprefix("--").partition("=")
    if not word.startswith("--") or not equals or not name:
        raise InputError(f"{word!r} is no setting of the cells to add; write --model.arch=vit_s16")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    check_value(name, value)
    return name, value


def combinations(sweep: Sweep, settings: Sequence[tuple[str, Value]]) -> list[dict[str, Value]]:
    """The cells that `settings` ask for: every combination of the values of each, and of all values that the file has for
    what they don't name. InputError: the file has a range for such a one."""
    given: dict[str, list[Value]] = {}
    for name, value in settings:
        given.setdefault(name, []).append(value)
    values = {name: list(each) for name, each in sweep.parameters.items()} | given
    if drawn := [name for name, each in values.items() if not each]:
        raise InputError(f"{', '.join(drawn)} of {sweep.path} is drawn from a range; give --{drawn[0]}=VALUE, too")
    names = sorted(values)
    for name in names:
        if not values[name]:
            raise InputError(f"{name} is drawn from a range in {sweep.path}; give its value: --{name}=VALUE")
    return [
        dict(zip(names, combination, strict=True))
        for combination in itertools.product(*(values[name] for name in names))
    ]

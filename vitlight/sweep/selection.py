"""Cells named on the command line: `3`, `7-9`, the beginning of a run's id, `failed`, `arch=vit_s16`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import get_args

from vitlight.errors import InputError, did_you_mean
from vitlight.sweep.plan import PlannedCell
from vitlight.sweep.status import State, cell_state

__all__ = ["CELLS", "select_cells"]

CELLS = "a number, numbers (3-7), a run id or its beginning, a state (failed), or a setting (arch=vit_s16)"
_LEAST_LETTERS = 3  # of a run's id


def select_cells(planned: Sequence[PlannedCell], words: Sequence[str]) -> list[PlannedCell]:
    """The cells that any of the words names, in grid order. InputError: a word that names none."""
    chosen: set[int] = set()
    for word in words:
        found = _named(planned, word)
        if not found:
            raise InputError(f"no cell of the sweep is {word!r}; name {CELLS}")
        chosen |= {item.cell.index for item in found}
    return [item for item in planned if item.cell.index in chosen]


def _named(planned: Sequence[PlannedCell], word: str) -> list[PlannedCell]:
    if numbers := re.fullmatch(r"(\d+)(?:-(\d+))?", word):
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        found = [item for item in planned if first <= item.cell.index <= last]
        if found or numbers[2]:
            return found
    if word in get_args(State):
        return [item for item in planned if cell_state(item)[0] == word]
    if "=" in word:
        return _with_setting(planned, *word.partition("=")[::2])
    found = [item for item in planned if len(word) >= _LEAST_LETTERS and item.run.run_id.startswith(word)]
    if len(found) > 1:
        raise InputError(
            f"{word} begins {len(found)} run ids ({', '.join(item.run.run_id for item in found)}); add letters"
        )
    return found


def _with_setting(planned: Sequence[PlannedCell], name: str, value: str) -> list[PlannedCell]:
    """`name`: a setting's full name, or the last parts of it."""
    names = list(dict.fromkeys(each for item in planned for each in item.cell.settings))
    meant = [each for each in names if each == name] or [each for each in names if each.endswith(f".{name}")]
    if len(meant) != 1:
        near = did_you_mean(name, {*names, *(each.rpartition(".")[2] for each in names)})
        why = f"is short for {' and '.join(meant)}" if meant else f"is no setting of a cell{near}"
        raise InputError(f"{name} in {name}={value} {why}")
    return [item for item in planned if meant[0] in item.cell.settings and str(item.cell.settings[meant[0]]) == value]

"""Every cell of a sweep, validated before any of them runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vitlight.errors import InputError
from vitlight.sweep.space import Cell, Sweep

if TYPE_CHECKING:
    from vitlight.training.resolve import ResolvedRun

__all__ = [
    "InvalidCells",
    "PlannedCell",
    "Resolve",
    "number_ranges",
    "plan_sweep",
    "shorter_first",
    "sweep_directory",
]

Resolve = Callable[[Sequence[str]], "ResolvedRun"]
Track = Callable[[Sequence[Cell]], Iterable[Cell]]


@dataclass(frozen=True)
class PlannedCell:
    """A cell, the complete arguments that start it, the run that they resolve to, and what of its training FLOPs is left
    where it begins with the steps that a shorter cell of the same trunk has done."""

    cell: Cell
    args: tuple[str, ...]  # the cell's, with --run.name and --run.root where the cell doesn't set them
    run: ResolvedRun
    own_train_flops: int


class InvalidCells(InputError):
    """Cells that can't be run. The message numbers all of them and gives the first one's reason; `reasons` has every
    (cell, reason)."""

    def __init__(self, sweep: Sweep, num_cells: int, reasons: Sequence[tuple[Cell, str]]) -> None:
        self.reasons = tuple(reasons)
        cell, reason = reasons[0]
        numbers = number_ranges([cell.index for cell, _ in reasons])
        super().__init__(
            f"{sweep.path}: {len(reasons)} of {num_cells} cells are invalid ({numbers}); "
            f"cell {cell.index} ({cell.label}): {reason}"
        )


def plan_sweep(
    sweep: Sweep, resolve: Resolve | None = None, root: Path | None = None, track: Track = iter
) -> list[PlannedCell]:
    """The cells in grid order. `resolve`: the experiment layer's by default. `track` may show progress over the cells.

    InvalidCells, before anything is started, where some don't resolve; InputError for two cells that are the same run, and
    cells that lie in different directories.
    """
    if resolve is None:
        from vitlight.training.resolve import Resolver

        resolve = Resolver()
    planned: list[PlannedCell] = []
    reasons: list[tuple[Cell, str]] = []
    cells = sweep.cells()
    for cell in track(cells):
        args = _complete_args(sweep, cell, root)
        try:
            run = resolve(args)
            planned.append(PlannedCell(cell, args, run, run.train_flops))
        except InputError as error:
            reasons.append((cell, " ".join(str(error).split("\n"))))
    if reasons:
        raise InvalidCells(sweep, len(cells), reasons)
    _check_distinct(sweep, planned)
    return _share_trunks(planned)


def sweep_directory(planned: Sequence[PlannedCell]) -> Path:
    """The directory that holds every run of the sweep: `<root>/<name>`."""
    return planned[0].run.run_dir.parent


def shorter_first(planned: PlannedCell) -> tuple[int, int, int]:
    """The order in which cells are started: by cost, and in a trunk from its root."""
    trunk = planned.run.trunk
    return planned.run.train_flops, trunk.last_step if trunk is not None else 0, planned.cell.index


def _share_trunks(planned: Sequence[PlannedCell]) -> list[PlannedCell]:
    """The same cells; each begins where the longest of the cells before it, in its trunk, has left the trunk."""
    left: dict[Path, int] = {}  # folder of a trunk -> the last step that a cell leaves there
    begins: dict[int, int] = {}
    for item in sorted(planned, key=shorter_first):
        trunk = item.run.trunk
        if trunk is not None:
            begin = left.get(trunk.folder, 0)
            begins[item.cell.index] = begin if begin <= trunk.last_step else 0
            left[trunk.folder] = max(begin, trunk.last_step)
    return [
        replace(item, own_train_flops=item.run.train_flops // item.run.steps * (item.run.steps - begin))
        if begin
        else item
        for item in planned
        for begin in [begins.get(item.cell.index, 0)]
    ]


def _complete_args(sweep: Sweep, cell: Cell, root: Path | None) -> tuple[str, ...]:
    defaults = {"--run.name": sweep.name} | ({"--run.root": str(root)} if root is not None else {})
    given = {arg.partition("=")[0] for arg in cell.args}
    return cell.args + tuple(f"{flag}={value}" for flag, value in defaults.items() if flag not in given)


def _check_distinct(sweep: Sweep, planned: Sequence[PlannedCell]) -> None:
    by_run_id: dict[str, PlannedCell] = {}
    for item in planned:
        other = by_run_id.setdefault(item.run.run_id, item)
        if other is not item:
            settings, others = item.cell.settings, other.cell.settings
            differing = [name for name in settings | others if settings.get(name, item) != others.get(name, item)]
            raise InputError(
                f"{sweep.path}: cells {other.cell.index} ({other.cell.label}) and {item.cell.index} "
                f"({item.cell.label}) are the same run {item.run.run_id}: {', '.join(differing)} changes "
                "nothing there; keep one of its values"
            )
        if item.run.run_dir.parent != planned[0].run.run_dir.parent:
            raise InputError(
                f"{sweep.path}: cells 0 and {item.cell.index} lie in {planned[0].run.run_dir.parent} and "
                f"{item.run.run_dir.parent}; a sweep has one directory: "
                "take run.name and run.root out of its parameters"
            )


def number_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text: [0, 1, 2, 5] -> "0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)

"""Every cell of a sweep, validated before any of them runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError
from vitlight.sweep.added import read_added
from vitlight.sweep.search_journal import settled
from vitlight.sweep.space import Cell, Sweep
from vitlight.training.run_facts import RunFacts

if TYPE_CHECKING:
    from vitlight.training.resolve import ResolvedRun

__all__ = [
    "InvalidCells",
    "PlannedCell",
    "RecordedRun",
    "Resolve",
    "awaits_trunk",
    "complete_args",
    "first_of_each_run",
    "number_ranges",
    "plan_cell",
    "plan_sweep",
    "settled_search",
    "shorter_first",
    "sweep_directory",
]

Resolve = Callable[[Sequence[str]], "ResolvedRun"]
Track = Callable[[Sequence[Cell]], Iterable[Cell]]


@dataclass(frozen=True)
class RecordedRun(RunFacts):
    """A `ResolvedRun` as it was written down (see `recorded_plan`): all that looking at it takes, and nothing to start it
    with. `settings`: of the trainer alone, what decides how fast it trains."""

    family: str | None = None
    settings: Any | None = field(default=None, repr=False, compare=False)
    trunk: None = None


@dataclass(frozen=True)
class PlannedCell:
    """A cell, the complete arguments that start it, the run that they resolve to, and what of its training FLOPs is left
    where it begins with the steps that a shorter cell of the same trunk has done."""

    cell: Cell
    args: tuple[str, ...]  # the cell's, with --run.name and --run.root where the cell doesn't set them
    run: ResolvedRun | RecordedRun
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
    """The cells in grid order, then those that were added to the sweep's directory and are no runs of the grid. `resolve`:
    the experiment layer's by default. `track` may show progress over the cells.

    InvalidCells, before anything is started, where some don't resolve; InputError for two cells that are the same run, and
    cells that lie in different directories.
    """
    if resolve is None:
        from vitlight.training.resolve import Resolver

        resolve = Resolver()
    if sweep.search is not None:
        sweep = settled_search(sweep, resolve, root)
    cells = sweep.cells()
    planned = _resolve_all(sweep, cells, resolve, root, track)
    num_listed = len(cells) - len(sweep.added)
    listed, beside = planned[:num_listed], planned[num_listed:]
    if sweep.search is not None:
        listed = first_of_each_run(listed)
    _check_distinct(sweep, listed)
    if not beside and (added := read_added(sweep_directory(listed))):
        sweep = replace(sweep, added=added)
        cells = sweep.cells()
        labelled = {cell.index: cell for cell in cells}
        listed = [replace(item, cell=labelled[item.cell.index]) for item in listed]
        beside = _resolve_all(sweep, cells[-len(added) :], resolve, root, track)
    planned = first_of_each_run([*listed, *beside])
    _check_distinct(sweep, planned)
    return _share_trunks(planned)


def plan_cell(sweep: Sweep, cell: Cell, resolve: Resolve, root: Path | None) -> PlannedCell:
    """One cell, by itself. InputError: it is invalid."""
    args = complete_args(sweep, cell, root)
    run = resolve(args)
    return PlannedCell(cell, args, run, run.train_flops)


def settled_search(sweep: Sweep, resolve: Resolve, root: Path | None) -> Sweep:
    """The sweep with what its directory has of its search; the directory is that of the first cell that resolves."""
    for cell in sweep.cells():
        try:
            run = resolve(complete_args(sweep, cell, root))
        except InputError:
            continue
        return settled(sweep, run.run_dir.parent)
    return sweep


def first_of_each_run(planned: Sequence[PlannedCell]) -> list[PlannedCell]:
    """Two draws of a search may differ in what changes nothing, and nobody can take one of them out of the file; a cell that
    was added may have come into the grid since."""
    first: dict[str, PlannedCell] = {}
    for item in planned:
        first.setdefault(item.run.run_id, item)
    return list(first.values())


def _resolve_all(
    sweep: Sweep, cells: Sequence[Cell], resolve: Resolve, root: Path | None, track: Track
) -> list[PlannedCell]:
    planned: list[PlannedCell] = []
    reasons: list[tuple[Cell, str]] = []
    for cell in track(cells):
        try:
            planned.append(plan_cell(sweep, cell, resolve, root))
        except InputError as error:
            reasons.append((cell, " ".join(str(error).split("\n"))))
    if reasons:
        raise InvalidCells(sweep, len(cells), reasons)
    return planned


def sweep_directory(planned: Sequence[PlannedCell]) -> Path:
    """The directory that holds every run of the sweep: `<root>/<name>`."""
    return planned[0].run.run_dir.parent


def shorter_first(planned: PlannedCell) -> tuple[int, int, int]:
    """The order in which cells are started: by cost, and in a trunk from its root."""
    trunk = planned.run.trunk
    return planned.run.train_flops, trunk.last_step if trunk is not None else 0, planned.cell.index


def awaits_trunk(planned: PlannedCell, others: Sequence[PlannedCell]) -> bool:
    """Whether a shorter cell of its trunk, one of the `others`, has yet to leave the state that this one begins from."""
    trunk = planned.run.trunk
    if trunk is None:
        return False
    trunks = [item.run.trunk for item in others]
    steps = {other.last_step for other in trunks if other is not None and other.folder == trunk.folder}
    return any(step < trunk.last_step and not trunk.has(step) for step in steps)


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


def complete_args(sweep: Sweep, cell: Cell, root: Path | None) -> tuple[str, ...]:
    """The cell's arguments, with the sweep's name and, where it is given, `root` as its folder of all runs."""
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

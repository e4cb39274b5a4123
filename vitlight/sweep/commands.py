"""`vitlight sweep plan | run | status`: the parsers, built with argparse alone, and what they call."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitlight.sweep.plan import PlannedCell
    from vitlight.sweep.space import Cell, Sweep

__all__ = ["add_sweep_parser", "plan_command", "run_command", "status_command"]

Row = dict[str, Any]
STATE_STYLES = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "diverged": "yellow",
    "waiting": "",
    "other": "dim",
}
CAPTION = "FLOP = half a MAC; train FLOPs = 3 x 2 x forward MACs x images"


def add_sweep_parser(subparsers: Any) -> None:
    """Add `sweep` to argparse `subparsers`; the chosen handler, Namespace -> exit code, is left in `args.handler`."""
    sweep = subparsers.add_parser("sweep", help="plan, run and watch a grid of runs (W&B's sweep format)")
    actions = sweep.add_subparsers(dest="action", required=True, metavar="plan | run | status")
    plan = _add_action(actions, "plan", plan_command, "check every cell and show what it costs; runs nothing")
    run = _add_action(actions, "run", run_command, "run the cells that have no result yet; failed ones are tried again")
    status = _add_action(actions, "status", status_command, "show what is done, running, failed and waiting")
    for parser in (plan, status):
        parser.add_argument("--json", action="store_true", help="a JSON list of rows")
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at a time (default: 1)")


def _add_action(
    actions: Any, name: str, handler: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
    parser.add_argument("file", metavar="FILE", help="sweep file, for example sweeps/quickstart.yaml")
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="folder of all runs (default: the experiment's run.root)"
    )
    parser.set_defaults(handler=handler)
    return parser


def plan_command(args: argparse.Namespace) -> int:
    """Print the cells of the sweep with their cost. InputError where one is invalid."""
    _, planned = _plan(args)
    rows = [_plan_row(item) for item in planned]
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        columns = [*_naming_columns(planned), *_cost_columns(planned), _summed("steps", "steps")]
        _print_table(columns, rows, f"{len(rows)} cells")
    return 0


def run_command(args: argparse.Namespace) -> int:
    """Run the sweep; 0 when every cell has a result, 1 when some failed, 75 or 128 + N when a signal stopped it."""
    from vitlight.sweep.executors import LocalExecutor
    from vitlight.sweep.plan import sweep_directory
    from vitlight.sweep.runner import run_planned

    executor = LocalExecutor(args.jobs)
    sweep, planned = _plan(args)
    outcome = run_planned(planned, sweep.path, executor)
    diverged = f", {outcome.num_diverged} diverged" if outcome.num_diverged else ""
    failed = f", {len(outcome.failures)} failed" if outcome.failures else ""
    print(
        f"{sweep.name}: {outcome.num_done} of {len(planned)} cells done{diverged}{failed}; {sweep_directory(planned)}"
    )
    for failure in outcome.failures:
        print(f"failed: {failure.planned.cell.label}: {failure.reason}; log: {failure.log}")
    if outcome.signum is not None:
        print("stopped; the same command goes on from here")
    elif outcome.failures:
        print("the same command tries the failed cells again")
    return outcome.exit_code


def status_command(args: argparse.Namespace) -> int:
    """Print the state of every cell, and of other runs in the directory."""
    from vitlight.sweep.status import status_rows

    _, planned = _plan(args)
    rows = status_rows(planned)
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        counts = {state: sum(row["state"] == state for row in rows) for state in STATE_STYLES}
        summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        columns = [*_naming_columns(planned), *STATE_COLUMNS[:1], *_cost_columns(planned), *STATE_COLUMNS[1:]]
        _print_table(columns, rows, f"{len(planned)} cells: {summary}")
        for row in rows:
            if row["reason"]:
                print(f"{row['state']} {row['run_id']}: {row['reason'].splitlines()[0]}")
    return 0


@dataclass(frozen=True)
class Column:
    """A column of a table: how a row fills it, and how all rows together fill the last line."""

    title: str
    text: Callable[[Row], str]
    total: Callable[[list[Row]], str] = lambda rows: ""
    numeric: bool = False


def _summed(title: str, key: str) -> Column:
    """A count, with its sum over the sweep's own cells in the last line."""
    return Column(
        title,
        lambda row: "" if row[key] is None else f"{row[key]:,}",
        lambda rows: f"{sum(row[key] or 0 for row in rows if row['cell'] is not None):,}",
        numeric=True,
    )


def _si(number: int | None) -> str:
    """Three digits and an SI prefix: 21_966_208 -> "22.0 M"."""
    if number is None:
        return ""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 0.9995 * 10**power:  # what rounds to the next prefix takes it
            return f"{number / 10**power:#.3g} {prefix}".replace(". ", " ")
    return str(number)


def _cost_columns(planned: Sequence[PlannedCell]) -> list[Column]:
    """Where cells share a trunk, what each costs by itself stands beside the FLOPs its result counts; only these sum up."""
    flops = [_flops("train FLOPs", "train_flops")]
    if any(item.own_train_flops != item.run.train_flops for item in planned):
        flops = [replace(flops[0], total=lambda rows: ""), _flops("of these its own", "own_train_flops")]
    return [
        Column("params", lambda row: _si(row["params"]), numeric=True),
        Column("forward MACs per image", lambda row: _si(row["forward_macs"]), numeric=True),
        *flops,
        _summed("images", "horizon_samples"),
    ]


def _flops(title: str, name: str) -> Column:
    return Column(
        title,
        lambda row: "" if row[name] is None else f"{row[name]:.3e}",
        lambda rows: f"{sum(row[name] for row in rows if row['cell'] is not None):.3e}",
        numeric=True,
    )


STATE_COLUMNS = (
    Column("state", lambda row: f"[{STATE_STYLES[row['state']] or 'default'}]{row['state']}[/]"),
    _summed("images seen", "samples_seen"),
    Column("top1", lambda row: "" if row["top1"] is None else f"{row['top1']:.4f}", numeric=True),
    Column(
        "seconds",
        lambda row: "" if row["seconds"] is None else f"{row['seconds']:,.1f}",
        lambda rows: f"{sum(row['seconds'] or 0.0 for row in rows if row['cell'] is not None):,.1f}",
        numeric=True,
    ),
)


def _naming_columns(planned: Sequence[PlannedCell]) -> list[Column]:
    """The cell's number, its run, and each swept parameter under the last part of its name."""
    cells = [item.cell for item in planned]
    swept = [
        name for name, value in cells[0].parameters.items() if any(cell.parameters[name] != value for cell in cells)
    ]
    endings = [name.rpartition(".")[2] for name in cells[0].parameters]
    columns = [
        Column("cell", lambda row: "" if row["cell"] is None else str(row["cell"]), lambda rows: "total", numeric=True),
        Column("run", lambda row: row["run_id"]),
    ]
    for name in swept or cells[0].parameters:
        ending = name.rpartition(".")[2]
        title = ending if endings.count(ending) == 1 else name
        columns.append(Column(title, partial(_parameter_text, name)))
    return columns


def _parameter_text(name: str, row: Row) -> str:
    return _escaped(str(row["parameters"].get(name, "")))


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _print_table(columns: Sequence[Column], rows: list[Row], summary: str) -> None:
    """The table with its totals and a summary. In a pipe it is as wide as it needs to be, so that no value is cut."""
    from rich.console import Console
    from rich.table import Table

    table = Table(caption=f"{summary}\n{CAPTION}", caption_justify="left", show_footer=True)
    for column in columns:
        table.add_column(
            column.title,
            footer=column.total(rows),
            justify="right" if column.numeric else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(column.text(row) for column in columns))
    console = Console()
    if not console.is_terminal:
        console = Console(width=console.measure(table, options=console.options.update(max_width=10_000)).maximum)
    console.print(table)


def _plan(args: argparse.Namespace) -> tuple[Sweep, list[PlannedCell]]:
    """Load the file and resolve its cells, with a bar over them in a terminal: a cell takes about 0.2 s."""
    from vitlight.sweep.plan import plan_sweep
    from vitlight.sweep.space import load_sweep

    def track(cells: Sequence[Cell]) -> Iterable[Cell]:
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        return track(cells, "checking cells", console=console, transient=True, disable=not console.is_terminal)

    sweep = load_sweep(args.file)
    return sweep, plan_sweep(sweep, root=args.root, track=track)


def _plan_row(planned: PlannedCell) -> Row:
    run = planned.run
    return {
        "cell": planned.cell.index,
        "parameters": planned.cell.parameters,
        "args": list(planned.args),
        "run_id": run.run_id,
        "run_dir": str(run.run_dir),
        "arch": run.arch,
        "image_size": run.image_size,
        "num_train_samples": run.num_train_samples,
        "seed": run.seed,
        "params": run.params,
        "forward_macs": run.forward_macs,
        "train_flops": run.train_flops,
        "own_train_flops": planned.own_train_flops,
        "horizon_samples": run.horizon_samples,
        "steps": run.steps,
        "global_batch_size": run.global_batch_size,
    }

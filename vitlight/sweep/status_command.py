"""`vitlight sweep status`: the table once, or again and again until nothing is left to happen."""

from __future__ import annotations

import argparse
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError
from vitlight.messages import say
from vitlight.sweep.known_plan import add_place_arguments, load_known_plan

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from vitlight.sweep.plan import PlannedCell
    from vitlight.sweep.tables import Row

__all__ = ["add_status_parser", "status_command"]

WATCH_SECONDS = 5.0
_FRAME_LINES = 7  # of a table: its borders, titles in two lines, and totals
_MOST_FAILURES = 5  # named under a live table


def add_status_parser(actions: Any) -> None:
    """Add `status` to the argparse subparsers of `sweep`; the handler, Namespace -> exit code, is left in `args.handler`."""
    text = "show what is done, running, failed and waiting, how far it is, and what is left"
    parser = actions.add_parser("status", help=text, description=text)
    add_place_arguments(parser)
    parser.add_argument(
        "--watch",
        nargs="?",
        const=WATCH_SECONDS,
        type=float,
        metavar="SECONDS",
        help=f"in a terminal: show it anew every so often (default: {WATCH_SECONDS:g}) until all cells have ended",
    )
    parser.add_argument("--json", action="store_true", help="a JSON list of rows")
    parser.add_argument("--failed", action="store_true", help="only cells that failed or diverged")
    parser.add_argument(
        "--columns", metavar="A,B,...", help="these columns in this order (default: as many as there is room for)"
    )
    parser.set_defaults(handler=status_command)


def status_command(args: argparse.Namespace) -> int:
    """Print the state of every cell, and of other runs in the directory."""
    from rich.console import Console

    from vitlight.sweep.status import status_rows

    if args.watch is not None and not args.watch > 0:
        raise InputError(f"--watch {args.watch:g} is not above 0 seconds")
    if args.json and (args.watch is not None or args.columns is not None):
        other = "--watch" if args.watch is not None else "--columns"
        raise InputError(f"--json prints whole rows once; leave {other} out")
    sweep, planned = load_known_plan(args)
    if args.json:
        print(json.dumps(_wanted(args, status_rows(planned)), indent=1))
        return 0
    console = Console(highlight=False, emoji=False)
    if args.watch is not None and console.is_terminal:
        _watch(args, planned, console)
        return 0
    if args.watch is not None:
        say("--watch: this is no terminal, so the status is printed once")
    _print(args, planned, console)
    if (note := sweep.search_note(len(planned))) is not None:
        print(note)
    return 0


def _wanted(args: argparse.Namespace, rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["state"] in ("failed", "diverged")] if args.failed else rows


def _print(args: argparse.Namespace, planned: list[PlannedCell], console: Console) -> None:
    from vitlight.sweep.status import status_rows
    from vitlight.sweep.status_table import (
        chosen_columns,
        fact_lines,
        failure_lines,
        fitting,
        status_columns,
    )

    every = status_rows(planned)
    rows = _wanted(args, every)
    columns = chosen_columns(status_columns(planned), args.columns, rows)
    table = fitting(columns, rows, console, args.columns is None)
    console.print(table)
    for line in (*fact_lines(every), *failure_lines(rows)):
        print(line)


def _watch(args: argparse.Namespace, planned: list[PlannedCell], console: Console) -> None:
    """Until every cell is done or diverged, or Ctrl-C. A sweep file that changes, and cells that are added, are noticed."""
    from rich.live import Live

    from vitlight.sweep.plan import sweep_directory
    from vitlight.sweep.status import FINISHED, status_rows

    before = _changes(args, sweep_directory(planned))
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            rows = status_rows(planned)
            live.update(_screen(args, planned, rows, console), refresh=True)
            if all(row["state"] in (*FINISHED, "other") for row in rows):
                return
            time.sleep(args.watch)
            if (now := _changes(args, sweep_directory(planned))) != before:
                before = now
                with suppress(InputError):  # a file that is just being written
                    _, planned = load_known_plan(args)


def _changes(args: argparse.Namespace, directory: Path) -> list[int]:
    from vitlight.sweep.added import ADDED
    from vitlight.sweep.tally import SWEEP_FILE

    place = Path(args.file)
    times = []
    suggested = (directory / "search").glob("*")
    for path in (place / SWEEP_FILE if place.is_dir() else place, directory / ADDED, *suggested):
        with suppress(OSError):
            times.append(os.stat(path).st_mtime_ns)  # noqa: PTH116
    return times


def _screen(args: argparse.Namespace, planned: list[PlannedCell], every: list[Row], console: Console) -> RenderableType:
    """As much as the terminal's height has room for: the most telling rows, and the facts."""
    from rich.console import Group
    from rich.text import Text

    from vitlight.sweep.status_table import (
        chosen_columns,
        fact_lines,
        failure_lines,
        fitting,
        most_telling,
        status_columns,
    )

    rows = _wanted(args, every)
    failures = list(failure_lines(rows))
    lines = [*fact_lines(every), *failures[:_MOST_FAILURES]]
    if len(failures) > _MOST_FAILURES:
        lines.append(f"and {len(failures) - _MOST_FAILURES} more: --failed without --watch names all")
    room = max(3, console.height - _FRAME_LINES - len(lines) - 1)
    shown = most_telling(rows, room)
    if len(shown) < len(rows):
        lines.append(f"{len(rows) - len(shown)} more cells; there is room for {len(shown)}")
    columns = chosen_columns(status_columns(planned), args.columns, rows)
    table = fitting(columns, rows, console, args.columns is None, shown)
    return Group(table, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))

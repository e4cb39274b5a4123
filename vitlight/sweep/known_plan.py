"""The plan of a sweep for those who look at it or steer it: as its directory has it on record, where that still holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitlight.errors import InputError

if TYPE_CHECKING:
    from vitlight.sweep.plan import PlannedCell
    from vitlight.sweep.space import Cell, Sweep

__all__ = ["add_place_arguments", "check_directory", "load_known_plan", "load_place"]


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the sweep is: its file, or the directory of its runs."""
    parser.add_argument(
        "file", metavar="FILE|DIRECTORY", help="sweep file, or the directory of its runs, for example runs/quickstart"
    )
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="folder of all runs (default: the experiment's run.root)"
    )


def load_known_plan(args: argparse.Namespace) -> tuple[Sweep, list[PlannedCell]]:
    """The sweep and its cells. Of a file, the record is taken where nothing has changed that the plan comes from; of a
    directory, as it was written by the last command that ran or planned it.

    InputError: as of `load_sweep` and `plan_sweep`; a directory that is no sweep's.
    """
    from vitlight.sweep.plan import plan_sweep, sweep_directory
    from vitlight.sweep.recorded_plan import likely_directory, record_plan, recorded_plan

    sweep, root, directory = load_place(args)
    known = recorded_plan(sweep, directory or likely_directory(sweep, root), directory is None, root)
    if known is not None:
        return sweep, known
    planned = plan_sweep(sweep, root=root, track=_tracked)
    check_directory(directory, sweep_directory(planned))
    record_plan(planned)
    return sweep, planned


def check_directory(named: Path | None, found: Path) -> None:
    """InputError: `named` was given for the sweep, whose runs lie in another directory, `found`."""
    if named is not None and found.resolve() != named.resolve():
        raise InputError(f"{named} holds a sweep whose runs lie in {found}; name that, or the sweep file")


def load_place(args: argparse.Namespace) -> tuple[Sweep, Path | None, Path | None]:
    """The sweep, the folder of all runs where that was said, and the sweep's directory where that was named.

    A directory's name is the sweep's where its file has none.
    """
    from vitlight.sweep.space import load_sweep
    from vitlight.sweep.tally import SWEEP_FILE

    place, search_seed = Path(args.file), getattr(args, "search_seed", None)
    if not place.is_dir():
        return load_sweep(place, search_seed), args.root, None
    if args.root is not None:
        raise InputError(f"--root {args.root} says where {place} lies, which its name does; leave it out")
    if not (place / SWEEP_FILE).exists():
        raise InputError(f"{place} has no {SWEEP_FILE}, so it is no sweep's directory; name one, or a sweep file")
    directory = place.resolve() if place.name in ("", "..") else place
    return load_sweep(place / SWEEP_FILE, search_seed, directory.name), directory.parent, directory


def _tracked(cells: Sequence[Cell]) -> Iterable[Cell]:
    """With a bar in a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(file=sys.stderr)
    return track(cells, "checking cells", console=console, transient=True, disable=not console.is_terminal)

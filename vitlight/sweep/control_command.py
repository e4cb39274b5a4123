"""`vitlight sweep stop`, `retry` and `add`: what can be asked of a sweep, whoever runs it and wherever."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError
from vitlight.sweep.known_plan import add_place_arguments, check_directory, load_known_plan, load_place
from vitlight.sweep.selection import CELLS, select_cells

if TYPE_CHECKING:
    from vitlight.sweep.control import Stopping
    from vitlight.sweep.plan import PlannedCell

__all__ = ["add_command", "add_control_parsers", "retry_command", "stop_command"]


def add_control_parsers(actions: Any) -> None:
    """Add `stop`, `retry` and `add` to the argparse subparsers of `sweep`."""
    stop = _parser(
        actions, "stop", stop_command, "ask running cells to save and end, and runners to start no more; `run` goes on"
    )
    stop.add_argument("cells", nargs="*", metavar="CELL", help=f"only these: {CELLS}")
    stop.add_argument("--detach", action="store_true", help="don't wait until they have ended")
    retry = _parser(actions, "retry", retry_command, "have cells that failed, diverged or were ended early run again")
    retry.add_argument("cells", nargs="*", metavar="CELL", help=f"(default: failed) {CELLS}")
    retry.add_argument(
        "--from-scratch",
        action="store_true",
        help="from the first step, not from the run's last checkpoint; what there is is set aside",
    )
    add = _parser(actions, "add", add_command, "add cells beside the grid; `run` takes them with the others")
    add.usage = "vitlight sweep add [-h] [--root DIR] FILE|DIRECTORY --NAME=VALUE ..."
    add.add_argument(
        "settings",
        nargs=argparse.REMAINDER,
        metavar="--NAME=VALUE",
        help="settings of the new cells, each as often as it has values; for what isn't named, all the values of the file",
    )


def _parser(
    actions: Any, name: str, handler: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
    add_place_arguments(parser)
    parser.set_defaults(handler=handler)
    return parser


def stop_command(args: argparse.Namespace) -> int:
    """0 when all that was asked to end has ended; 1 where jobs of another user or cluster could not be reached."""
    from vitlight.sweep.control import ask_to_stop, wait_until_ended
    from vitlight.sweep.plan import sweep_directory
    from vitlight.sweep.slurm_queue import SlurmQueue
    from vitlight.sweep.status import FINISHED, cell_state

    _, planned = load_known_plan(args)
    directory, queue = sweep_directory(planned), SlurmQueue()
    if not directory.is_dir():
        raise InputError(f"{directory} isn't there: nothing of this sweep was ever run")
    cells = None
    if args.cells:
        named = select_cells(planned, args.cells)
        cells = [item for item in named if cell_state(item)[0] not in FINISHED]
        if not cells:
            raise InputError(f"{_several(named)} {'has' if len(named) == 1 else 'have'} ended already")
    stopping = ask_to_stop(planned, cells, queue)
    for line in _asked_lines(stopping, cells):
        print(line, flush=True)
    if stopping.running and not args.detach:
        wait_until_ended(planned, stopping, _say_ended, cells is None, queue)
    print(f"`{_run_command(args)}` goes on from here")
    return 1 if stopping.unreachable else 0


def _run_command(args: argparse.Namespace) -> str:
    """What runs the sweep that this command was about."""
    root = [] if args.root is None else ["--root", str(args.root)]
    return shlex.join(["vitlight", "sweep", "run", str(args.file), *root])


def _several(cells: Sequence[PlannedCell]) -> str:
    from vitlight.sweep.plan import number_ranges

    return f"cell{'s' if len(cells) > 1 else ''} {number_ranges([item.cell.index for item in cells])}"


def _asked_lines(stopping: Stopping, cells: Sequence[PlannedCell] | None) -> list[str]:
    what = "runners start no more cells" if cells is None else f"runners leave {_several(cells)}"
    lines = [what if stopping.running or stopping.cancelled else f"{what}; none was running"]
    if stopping.running:
        lines.append(f"asked to save and end: {_several(stopping.running)}")
    if stopping.cancelled:
        lines.append(f"taken back from Slurm: {_several(stopping.cancelled)}")
    for item, record in stopping.unreachable:
        lines.append(
            f"not reached: cell {item.cell.index}, job {record.job} of {record.user} on {record.cluster}; `scancel` it there"
        )
    return lines


def _say_ended(planned: PlannedCell, dead_host: str | None) -> None:
    from vitlight.sweep.glance import glance_at
    from vitlight.sweep.status import FINISHED, cell_state

    run = planned.run
    state, _ = cell_state(planned)
    how: str = state
    if state not in FINISHED:
        seen = glance_at(run.run_dir).samples_seen
        word = "stopped " if dead_host is None else f"lost     with {dead_host}"
        how = f"{word} at about {seen:,} of {run.horizon_samples:,} images"
    print(f"{how:<8} {planned.cell.label}  {run.run_id}", flush=True)


def retry_command(args: argparse.Namespace) -> int:
    """0 when all that was named will be run again; 1 where somebody has taken one meanwhile."""
    from vitlight.sweep.claims import Claims
    from vitlight.sweep.control import clear
    from vitlight.sweep.plan import sweep_directory
    from vitlight.sweep.requests import write_request
    from vitlight.sweep.status import cell_state

    _, planned = load_known_plan(args)
    if not args.cells and not any(cell_state(item)[0] == "failed" for item in planned):
        print("no cell has failed; name those that diverged: `retry FILE diverged`")
        return 0
    cells = select_cells(planned, args.cells or ["failed"])
    allowed = ("failed", "diverged", "stopped", *(("waiting",) if args.from_scratch else ()))
    for item in cells:
        state = cell_state(item)[0]
        if state not in allowed:
            raise InputError(
                f"cell {item.cell.index} ({item.cell.label}) is {state}; retry is for cells that failed or "
                "diverged, or were stopped early"
                + {
                    "waiting": ", and --from-scratch for those that have begun, too",
                    "running": "; `sweep stop` ends it first, or frees it where its host is dead",
                }.get(state, "")
            )
    with Claims() as claims:
        cleared = [item for item in cells if clear(item, claims, args.from_scratch)]
    if cleared:
        write_request(sweep_directory(planned), "retry", [item.run.run_id for item in cleared])
        how = ", from the first step" if args.from_scratch else ""
        print(f"to be run again{how}: {_several(cleared)}; by the runners at work, or by `{_run_command(args)}`")
    taken = [item for item in cells if item not in cleared]
    if taken:
        print(f"left alone: {_several(taken)}, which somebody else has meanwhile taken")
    return 1 if taken else 0


def add_command(args: argparse.Namespace) -> int:
    """Check the new cells as `plan` does, and note those that are new in the sweep's directory."""
    from dataclasses import replace

    from vitlight.sweep.added import append_added, combinations, parse_setting, read_added
    from vitlight.sweep.plan import plan_cell, plan_sweep, settled_search
    from vitlight.training.resolve import Resolver

    rest = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    rest.add_argument("--root", type=Path)
    after, words = rest.parse_known_args(args.settings)
    args.root = args.root if after.root is None else after.root
    if not words:
        raise InputError("name the settings of the cells to add: --model.arch=vit_s16 --seed_everything=0")
    sweep, root, named = load_place(args)
    resolve = Resolver()
    if sweep.search is not None:
        sweep = settled_search(sweep, resolve, root)
    directory = plan_cell(sweep, sweep.cells()[0], resolve, root).run.run_dir.parent
    check_directory(named, directory)
    before = read_added(directory)
    known = {cell.args for cell in replace(sweep, added=before).cells()}
    asked = combinations(sweep, [parse_setting(word) for word in words])
    cells = replace(sweep, added=tuple(asked)).cells()[-len(asked) :]
    new = {cell.args: cell.parameters for cell in cells if cell.args not in known}
    if not new:
        raise InputError(f"the sweep has {'that cell' if len(asked) == 1 else f'these {len(asked)} cells'} already")
    extended = replace(sweep, added=(*before, *new.values()))
    planned = {item.cell.index: item for item in plan_sweep(extended, resolve, root)}
    cells = extended.cells()[-len(new) :]
    for cell in cells:
        if cell.index not in planned:
            raise InputError(
                f"{cell.label} is the same run as another cell of the sweep, so one of its settings changes nothing "
                "there; leave it out"
            )
    added = [planned[cell.index] for cell in cells]
    append_added(directory, [item.cell.parameters for item in added], len(before))
    for item in added:
        print(f"added    {item.cell.index}  {item.cell.label}  {item.run.run_id}")
    flops = sum(item.own_train_flops for item in added)
    print(f"{_several(added)}, {flops:.3e} train FLOPs; `{_run_command(args)}` runs them")
    return 0

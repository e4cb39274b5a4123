"""`vitlight sweep plan | run | status | stop | retry | add`: the parsers, built with argparse alone, and what `run` does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from vitlight.messages import say
from vitlight.sweep.control_command import add_control_parsers
from vitlight.sweep.plan_command import add_file_arguments, add_plan_parser, load_plan, plan_command
from vitlight.sweep.slurm_command import add_slurm_arguments, check_slurm_arguments, run_slurm
from vitlight.sweep.status_command import add_status_parser, status_command

if TYPE_CHECKING:
    from vitlight.sweep.executors import LocalExecutor
    from vitlight.sweep.outcomes import SweepOutcome
    from vitlight.sweep.plan import PlannedCell
    from vitlight.sweep.space import Sweep

__all__ = ["add_sweep_parser", "plan_command", "run_command", "status_command"]


def add_sweep_parser(subparsers: Any) -> None:
    """Add `sweep` to argparse `subparsers`; the chosen handler, Namespace -> exit code, is left in `args.handler`."""
    sweep = subparsers.add_parser("sweep", help="plan, run, watch and steer a grid of runs (W&B's sweep format)")
    actions = sweep.add_subparsers(dest="action", required=True, metavar="plan | run | status | stop | retry | add")
    add_plan_parser(actions)
    run = _add_action(actions, "run", run_command, "run the cells that have no result yet; failed ones are tried again")
    add_status_parser(actions)
    add_control_parsers(actions)
    _add_sharing_arguments(run)
    add_slurm_arguments(run)


def _add_action(
    actions: Any, name: str, handler: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
    add_file_arguments(parser)
    parser.set_defaults(handler=handler)
    return parser


def _add_sharing_arguments(run: argparse.ArgumentParser) -> None:
    """How cells share this machine."""
    run.add_argument(
        "--jobs",
        type=_at_least_1,
        metavar="N",
        help="cells at a time (default: as many as have GPUs of their own, else 1)",
    )
    run.add_argument(
        "--devices-per-cell",
        type=_at_least_1,
        metavar="K",
        help="GPUs of each cell, or cores where there is no GPU (default: trainer.devices, else an equal share)",
    )
    run.add_argument(
        "--cold",
        action="store_true",
        help="start each cell as a separate process, not as a fork of one that has imported everything",
    )
    run.add_argument(
        "--share-loader",
        action="store_true",
        help="one loader for the cells that run at the same time: what several train on is decoded once",
    )
    run.add_argument(
        "--share-loader-workers",
        type=_at_least_1,
        metavar="N",
        help="its decoding processes (default: one for each core)",
    )
    run.add_argument(
        "--share-loader-gib", type=float, metavar="GIB", help="its memory for decoded batches (default: 4)"
    )


def _at_least_1(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def run_command(args: argparse.Namespace) -> int:
    """Run the sweep; 0 when every cell has a result, 1 when some failed, 75 or 128 + N when a signal stopped it."""
    from vitlight.sweep.plan import sweep_directory
    from vitlight.sweep.shared_loader import check_loader_arguments

    check_slurm_arguments(args)
    check_loader_arguments(args)
    if args.slurm:
        sweep, planned = load_plan(args)
        on_slurm = run_slurm(args, sweep, planned)
        if on_slurm is None:
            return 0
        outcome = on_slurm
    else:
        sweep, planned, outcome = _run_here(args)
    diverged = f", {outcome.num_diverged} diverged" if outcome.num_diverged else ""
    early = f", {outcome.num_ended_early} ended early" if outcome.num_ended_early else ""
    failed = f", {len(outcome.failures)} failed" if outcome.failures else ""
    queued = f", {outcome.num_queued} with Slurm" if outcome.num_queued else ""
    counts = f"{outcome.num_done} of {len(planned)} cells done{diverged}{early}{failed}{queued}"
    print(f"{sweep.name}: {counts}; {sweep_directory(planned)}")
    for failure in outcome.failures:
        print(f"failed: {failure.planned.cell.label}: {failure.reason}; log: {failure.log}")
    if outcome.num_queued:
        print("the jobs go on without this command; the same one waits for them, scancel ends them")
    if outcome.signum is not None or outcome.is_stopped:
        print("stopped; the same command goes on from here")
    elif outcome.failures:
        print("the same command tries the failed cells again")
    return outcome.exit_code


def _run_here(args: argparse.Namespace) -> tuple[Sweep, list[PlannedCell], SweepOutcome]:
    from vitlight.sweep.devices import share_machine
    from vitlight.sweep.guide import open_guide
    from vitlight.sweep.runner import run_planned
    from vitlight.sweep.shared_loader import share_loader

    with _local_executor(args.cold) as executor:  # a warm one imports what cells need while they are checked here
        sweep, planned = load_plan(args)
        executor.sharing = share_machine(planned, args.jobs, args.devices_per_cell)
        for line in executor.sharing.lines():
            say(line)
        guide = open_guide(sweep, planned, root=args.root)
        with share_loader(args, planned, executor) as (sharing, order):
            outcome = run_planned(planned, sweep.path, sharing, guide=guide, order=order)
        return sweep, planned if guide is None else guide.planned, outcome


def _local_executor(cold: bool) -> AbstractContextManager[LocalExecutor]:
    from vitlight.sweep.executors import LocalExecutor
    from vitlight.sweep.warm import WarmExecutor

    return nullcontext(LocalExecutor()) if cold or sys.platform != "linux" else WarmExecutor()

"""`vitlight sweep run FILE --slurm`: its options, and what they start."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError
from vitlight.messages import say

if TYPE_CHECKING:
    from vitlight.sweep.outcomes import SweepOutcome
    from vitlight.sweep.plan import PlannedCell
    from vitlight.sweep.slurm_submit import SlurmOptions, SlurmSubmitter
    from vitlight.sweep.space import Sweep

__all__ = ["add_slurm_arguments", "check_slurm_arguments", "run_slurm"]

# Destination -> metavar, type, help.
_VALUES: dict[str, tuple[str, type, str]] = {
    "partition": ("P", str, "of the jobs (default: the cluster's)"),
    "account": ("A", str, "that the jobs are charged to"),
    "time": ("T", str, "limit of a job, as sbatch takes it; a cell that needs longer goes on in the next job"),
    "nodes_per_cell": ("N", int, "nodes of each cell (default: its trainer.num_nodes)"),
    "gpus_per_node": (
        "G",
        int,
        "GPUs, and so processes, on each node (default: the cell's trainer.devices, without GPUs)",
    ),
    "cpus_per_task": ("C", int, "cores of each process"),
    "mem": ("M", str, "memory of a node, for example 64G"),
    "max_parallel": ("K", int, "jobs at a time, with --detach in each array (default: as many as Slurm starts)"),
}
_LISTS = {
    "setup": ("LINE", "a line of shell before the run, such as 'module load cuda'; may be repeated"),
    "sbatch": ("NAME=VALUE", "any other option of sbatch, such as qos=high; may be repeated"),
}
_SWITCHES = {
    "dry_run": "print the job scripts, and submit nothing",
    "detach": "submit the jobs and leave, without cells that begin where others end; the same command without it waits",
}


def add_slurm_arguments(run: argparse.ArgumentParser) -> None:
    group = run.add_argument_group("on a Slurm cluster")
    group.add_argument("--slurm", action="store_true", help="run each cell as a Slurm job")
    for name, (metavar, kind, text) in _VALUES.items():
        group.add_argument(_flag(name), type=kind, metavar=metavar, help=text)
    for name, (metavar, text) in _LISTS.items():
        group.add_argument(_flag(name), action="append", default=[], metavar=metavar, help=text)
    for name, text in _SWITCHES.items():
        group.add_argument(_flag(name), action="store_true", help=text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_slurm_arguments(args: argparse.Namespace) -> None:
    """InputError: an option that means something on a cluster alone, without --slurm, or the other way round."""
    given = [_flag(name) for name in (*_VALUES, *_LISTS, *_SWITCHES) if getattr(args, name)]
    if given and not args.slurm:
        raise InputError(f"{given[0]} needs --slurm")
    local = [_flag(name) for name in ("jobs", "devices_per_cell", "cold", "share_loader") if getattr(args, name, None)]
    if local and args.slurm:
        raise InputError(f"{local[0]} is for cells on this machine; with --slurm, --max-parallel bounds the jobs")


def _options(args: argparse.Namespace) -> SlurmOptions:
    from vitlight.sweep.slurm_submit import SlurmOptions

    given: dict[str, Any] = {each.name: getattr(args, each.name) for each in fields(SlurmOptions)}
    return SlurmOptions(**(given | {name: tuple(given[name]) for name in _LISTS}))


def run_slurm(args: argparse.Namespace, sweep: Sweep, planned: Sequence[PlannedCell]) -> SweepOutcome | None:
    """Run the sweep on the cluster, or print the scripts and return None."""
    from vitlight.sweep.guide import open_guide
    from vitlight.sweep.slurm_queue import SlurmQueue
    from vitlight.sweep.slurm_runner import run_on_slurm
    from vitlight.sweep.slurm_submit import SlurmSubmitter

    if sweep.search is not None and sweep.search.method == "bayes":
        raise InputError(
            "method: bayes suggests cells as results come in, and jobs are submitted together; run it without --slurm "
            "inside an allocation, or use method: random"
        )
    queue, options = SlurmQueue(), _options(args)
    submitter = SlurmSubmitter(planned, options, queue)
    if not options.asks_for_gpus and any(_may_use_gpus(item) for item in planned):
        say("the jobs ask for no GPU; give --gpus-per-node, or trainer.accelerator=cpu in the sweep")
    if args.dry_run:
        _print_scripts(planned, submitter)
        return None
    guide = open_guide(sweep, planned, root=args.root)
    return run_on_slurm(planned, sweep.path, submitter, queue, args.detach, guide=guide)


def _may_use_gpus(planned: PlannedCell) -> bool:
    settings = planned.run.settings
    return settings is not None and settings.trainer.accelerator != "cpu"


def _print_scripts(planned: Sequence[PlannedCell], submitter: SlurmSubmitter) -> None:
    """Of all cells that have no result; Slurm is not asked which of them it has."""
    from vitlight.sweep.outcomes import is_finished
    from vitlight.sweep.plan import shorter_first
    from vitlight.sweep.status import read_result

    cells = sorted((item for item in planned if not is_finished(read_result(item.run.run_dir))), key=shorter_first)
    for array in submitter.arrays(cells):
        shape = submitter.shapes[array[0].run.run_id]
        print(submitter.script(array).rstrip())
        print(f"\n# {len(array)} cells on {shape.num_nodes} nodes with {shape.ranks_per_node} processes each:")
        for task, item in enumerate(array):
            print(f"#   {task}: {shlex.join(submitter.task(item, 'TOKEN').srun_words())}")
        print()

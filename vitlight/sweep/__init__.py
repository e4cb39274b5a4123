"""Sweeps: a W&B sweep file becomes cells, and the cells become finished runs, exactly once each."""

from vitlight.sweep.executors import Executor, Job, LocalExecutor
from vitlight.sweep.outcomes import Failure, SweepOutcome
from vitlight.sweep.plan import PlannedCell, plan_sweep
from vitlight.sweep.runner import run_sweep
from vitlight.sweep.space import Cell, Sweep, load_sweep
from vitlight.sweep.status import sweep_status

__all__ = [
    "Cell",
    "Executor",
    "Failure",
    "Job",
    "LocalExecutor",
    "PlannedCell",
    "Sweep",
    "SweepOutcome",
    "load_sweep",
    "plan_sweep",
    "run_sweep",
    "sweep_status",
]

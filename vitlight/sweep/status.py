"""What the sweep's directory says about each cell, read without disturbing a runner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from vitlight.sweep.claims import is_claimed, read_attempts
from vitlight.sweep.glance import Glance, glance_at, holder_of, is_held_here
from vitlight.sweep.job_records import job_path, read_job
from vitlight.sweep.plan import PlannedCell, Resolve, plan_sweep, sweep_directory
from vitlight.sweep.space import Sweep
from vitlight.training.stop_file import StopFile

if TYPE_CHECKING:
    from vitlight.sweep.rates import Rates

__all__ = [
    "FINISHED",
    "Result",
    "State",
    "cell_state",
    "claim_path",
    "log_path",
    "read_result",
    "status_rows",
    "sweep_status",
]

State = Literal["done", "running", "queued", "failed", "diverged", "stopped", "waiting", "other"]
FINISHED = ("done", "diverged", "stopped")


@dataclass(frozen=True)
class Result:
    """A run directory's result.json."""

    status: str  # done, diverged, stopped (it was ended early) or failed
    values: dict[str, Any]
    content: bytes  # tells one failure from the next


def claim_path(planned: PlannedCell) -> Path:
    return planned.run.run_dir.parent / "claims" / f"{planned.run.run_id}.lock"


def log_path(planned: PlannedCell) -> Path:
    return planned.run.run_dir.parent / "logs" / f"{planned.cell.id}.log"


def read_result(run_dir: Path) -> Result | None:
    """The result of a run that has ended, None where there is none. An unreadable file is a failure, and says so."""
    path = run_dir / "result.json"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        values = json.loads(content)
        return Result(values["status"], values, content)
    except (ValueError, KeyError, TypeError) as error:
        return Result("failed", {"reason": f"{path} is no result ({type(error).__name__}: {error})"}, content)


def sweep_status(sweep: Sweep, resolve: Resolve | None = None, root: Path | None = None) -> list[dict[str, Any]]:
    """One row a cell in grid order, then one row for each run in the directory that no cell makes (state `other`).

    Keys: cell, parameters, run_id, run_dir, state (done, running, queued, failed, diverged, stopped, waiting, other),
    job (its number where Slurm has the cell, else None), host and pid (of the first rank, None unless running),
    is_stopping (asked to save and end), params, forward_macs (per image), train_flops (of the whole run),
    own_train_flops (without the steps that a shorter cell of the same trunk does), horizon_samples, samples_seen (so
    far), images_per_second and data_wait_fraction (of the last row; of a finished run, over all of it), top1 (fraction,
    None unless done), seconds (wall, so far), device_seconds (so far, its own), seconds_left (wall) and
    device_seconds_left (of all its devices together; None where nothing like it was measured), log (None where there is
    none), reason (None unless failed or diverged). InputError as in plan_sweep.
    """
    return status_rows(plan_sweep(sweep, resolve, root))


def status_rows(planned: Sequence[PlannedCell]) -> list[dict[str, Any]]:
    """`sweep_status` of cells that are planned already."""
    rows = [_cell_row(item) for item in planned]
    if any(row["state"] not in FINISHED for row in rows):
        from vitlight.sweep.rates import known_rates

        rates = known_rates(planned)
        for item, row in zip(planned, rows, strict=True):
            row["seconds_left"], row["device_seconds_left"] = _time_left(item, row, rates)
    known = {item.run.run_id for item in planned}
    directory = sweep_directory(planned)
    candidates = sorted(directory.iterdir()) if directory.is_dir() else []
    return rows + [_other_row(path) for path in candidates if path.name not in known and _is_run(path)]


def cell_state(planned: PlannedCell) -> tuple[State, str | None]:
    """What the cell is doing, or what became of it and why."""
    # The claim comes first: a run that ends in between has a result, one that starts in between shows as waiting.
    claimed = is_claimed(claim_path(planned))
    result = read_result(planned.run.run_dir)
    reason = result.values.get("reason") if result is not None else None
    if result is not None and result.status in FINISHED:
        return cast(State, result.status), reason
    if claimed or is_held_here(planned.run.run_dir):
        return "running", None
    if job_path(planned).exists():
        return "queued", None
    attempts = read_attempts(claim_path(planned))
    if attempts.reason is not None or result is not None:
        return "failed", attempts.reason or reason
    return "waiting", None


def _cell_row(planned: PlannedCell) -> dict[str, Any]:
    run = planned.run
    state, reason = cell_state(planned)
    result = read_result(run.run_dir) if state in FINISHED else None
    record = read_job(job_path(planned)) if state in ("running", "queued") else None
    host, pid = holder_of(run.run_dir) if state == "running" else (None, None)
    log = log_path(planned)
    return {
        "cell": planned.cell.index,
        "parameters": planned.cell.parameters,
        "run_id": run.run_id,
        "run_dir": str(run.run_dir),
        "state": state,
        "job": record.job if record is not None else None,
        "host": host,
        "pid": pid,
        "is_stopping": state == "running" and StopFile(run.run_dir).path.exists(),
        "params": run.params,
        "forward_macs": run.forward_macs,
        "train_flops": run.train_flops,
        "own_train_flops": planned.own_train_flops,
        "horizon_samples": run.horizon_samples,
        **_progress(run.run_dir, result.values if result is not None else None),
        "log": str(log) if log.exists() else None,
        "reason": reason,
    }


def _other_row(run_dir: Path) -> dict[str, Any]:
    result = read_result(run_dir)
    values = result.values if result else {}
    return {
        "cell": None,
        "parameters": {},
        "run_id": run_dir.name,
        "run_dir": str(run_dir),
        "state": "other",
        "job": None,
        "host": None,
        "pid": None,
        "is_stopping": False,
        **{
            key: values.get(key)
            for key in ("params", "forward_macs", "train_flops", "own_train_flops", "horizon_samples")
        },
        **_progress(run_dir, values if result and result.status in FINISHED else None),
        "log": None,
        "reason": values.get("reason"),
    }


def _is_run(path: Path) -> bool:
    return (path / "result.json").exists() or (path / "experiment.yaml").exists()


def _progress(run_dir: Path, finished: dict[str, Any] | None) -> dict[str, Any]:
    """Of the result, with nothing left to do; or of the last rows that the run has recorded so far."""
    if finished is None:
        return _row_values(glance_at(run_dir), top1=None, left=None)
    glance = Glance(
        samples_seen=finished.get("samples_seen", 0),
        wall_seconds=finished.get("wall_seconds"),
        device_seconds=finished.get("own_device_seconds", finished.get("device_seconds")),
        images_per_second=finished.get("images_per_second"),
        data_wait_fraction=(finished.get("perf") or {}).get("data_wait"),
    )
    return _row_values(glance, top1=finished.get("top1"), left=0.0)


def _row_values(glance: Glance, top1: float | None, left: float | None) -> dict[str, Any]:
    return {
        "samples_seen": glance.samples_seen,
        "images_per_second": glance.images_per_second,
        "data_wait_fraction": glance.data_wait_fraction,
        "top1": top1,
        "seconds": glance.wall_seconds,
        "device_seconds": glance.device_seconds,
        "seconds_left": left,
        "device_seconds_left": left,
    }


def _time_left(planned: PlannedCell, row: dict[str, Any], rates: Rates) -> tuple[float | None, float | None]:
    """Wall and device seconds until the cell's end: by its own last rate where it is running, else as the plan estimates
    it, less the part that is done."""
    from vitlight.sweep.preflight import num_devices

    if row["state"] in FINISHED:
        return 0.0, 0.0
    estimate, devices = rates.estimate(planned), num_devices(planned)
    share = max(0.0, 1.0 - row["samples_seen"] / row["horizon_samples"])
    if row["state"] == "running" and row["images_per_second"]:
        training = share * row["horizon_samples"] / row["images_per_second"]
        evaluations = estimate.wall_seconds - estimate.device_seconds / devices if estimate is not None else 0.0
        return training + share * evaluations, training * devices
    if estimate is None:
        return None, None
    part = min(1.0, share * row["train_flops"] / row["own_train_flops"]) if row["own_train_flops"] else share
    return part * estimate.wall_seconds, part * estimate.device_seconds

"""What the sweep's directory says about each cell, read without disturbing a runner."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitlight.sweep.claims import is_claimed, read_attempts
from vitlight.sweep.job_records import job_path, read_job
from vitlight.sweep.plan import PlannedCell, Resolve, plan_sweep, sweep_directory
from vitlight.sweep.space import Sweep

__all__ = ["FINISHED", "Result", "State", "claim_path", "log_path", "read_result", "status_rows", "sweep_status"]

State = Literal["done", "running", "queued", "failed", "diverged", "waiting", "other"]
FINISHED = ("done", "diverged")
TAIL_BYTES = 1 << 16  # metrics.jsonl rows are far shorter


@dataclass(frozen=True)
class Result:
    """A run directory's result.json."""

    status: str  # done, diverged or failed
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

    Keys: cell, parameters, run_id, run_dir, state (done, running, queued, failed, diverged, waiting, other), job (its
    number where Slurm has the cell, else None), params, forward_macs (per image), train_flops (of the whole run),
    own_train_flops (without the steps that a shorter cell of the same trunk does), samples_seen (so far),
    horizon_samples, top1 (fraction, None unless done), seconds (wall),
    reason (None unless failed or diverged). InputError as in plan_sweep.
    """
    return status_rows(plan_sweep(sweep, resolve, root))


def status_rows(planned: Sequence[PlannedCell]) -> list[dict[str, Any]]:
    """`sweep_status` of cells that are planned already."""
    rows = [_cell_row(item) for item in planned]
    known = {item.run.run_id for item in planned}
    directory = sweep_directory(planned)
    candidates = sorted(directory.iterdir()) if directory.is_dir() else []
    return rows + [_other_row(path) for path in candidates if path.name not in known and _is_run(path)]


def _cell_row(planned: PlannedCell) -> dict[str, Any]:
    run = planned.run
    # The claim comes first: a run that ends in between has a result, one that starts in between shows as waiting.
    claimed = is_claimed(claim_path(planned))
    result = read_result(run.run_dir)
    attempts = read_attempts(claim_path(planned))
    record = read_job(job_path(planned))
    state: State
    reason = None
    if result is not None and result.status in FINISHED:
        state, reason = "done" if result.status == "done" else "diverged", result.values.get("reason")
    elif claimed:
        state = "running"
    elif record is not None:
        state = "queued"
    elif attempts.reason is not None or result is not None:
        state, reason = "failed", attempts.reason or (result.values.get("reason") if result else None)
    else:
        state = "waiting"
    return {
        "cell": planned.cell.index,
        "parameters": planned.cell.parameters,
        "run_id": run.run_id,
        "run_dir": str(run.run_dir),
        "state": state,
        "job": record.job if record is not None and state in ("running", "queued") else None,
        "params": run.params,
        "forward_macs": run.forward_macs,
        "train_flops": run.train_flops,
        "own_train_flops": planned.own_train_flops,
        "horizon_samples": run.horizon_samples,
        **_progress(run.run_dir, result.values if result and state in FINISHED else None),
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
        **{
            key: values.get(key)
            for key in ("params", "forward_macs", "train_flops", "own_train_flops", "horizon_samples")
        },
        **_progress(run_dir, values if result and result.status in FINISHED else None),
        "reason": values.get("reason"),
    }


def _is_run(path: Path) -> bool:
    return (path / "result.json").exists() or (path / "experiment.yaml").exists()


def _progress(run_dir: Path, finished: dict[str, Any] | None) -> dict[str, Any]:
    """samples_seen, top1 and seconds: of the result, or of the last row that the run has recorded so far."""
    if finished is not None:
        return {
            "samples_seen": finished.get("samples_seen"),
            "top1": finished.get("top1"),
            "seconds": finished.get("wall_seconds"),
        }
    row = _last_row(run_dir / "metrics.jsonl")
    return {"samples_seen": row.get("data/samples_seen", 0), "top1": None, "seconds": row.get("time/wall_seconds")}


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole row of a JSON-lines file that may be growing; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            return row
    return {}

"""Which cells are with a scheduler: `claims/<run id>.job`, written by whoever holds the cell's claim, and by nobody else.

So a cell is started by the holder of its claim who finds no record, or by the job that the record names.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vitlight.sweep.plan import PlannedCell
from vitlight.sweep.whole_files import replace_whole

__all__ = ["JobRecord", "job_path", "read_job", "remove_job", "write_job"]


@dataclass(frozen=True)
class JobRecord:
    """A cell that was handed to Slurm, or is just being handed."""

    token: str  # of the submission; the job carries it as its comment
    task: int | None  # its place in the submission's array, None where it is no array
    cluster: str
    user: str
    submitted: str  # UTC, ISO 8601
    job: str | None = None  # 123_4 or 123; None until sbatch has answered
    num_crashes: int = 0  # of the job's attempts, counted by the job itself


def job_path(planned: PlannedCell) -> Path:
    return planned.run.run_dir.parent / "claims" / f"{planned.run.run_id}.job"


def read_job(path: Path) -> JobRecord | None:
    """None where the cell is not with a scheduler."""
    try:
        return JobRecord(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None


def write_job(path: Path, record: JobRecord) -> None:
    replace_whole(path, json.dumps(asdict(record)).encode() + b"\n")


def remove_job(path: Path) -> None:
    path.unlink(missing_ok=True)

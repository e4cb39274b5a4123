"""How far a run has come, read from its directory without disturbing it."""

import platform
from dataclasses import dataclass
from pathlib import Path

from vitlight.json_lines import read_rows

__all__ = ["Glance", "glance_at", "holder_of", "is_held_here"]

_LOCKS = Path("/proc/locks")

TAIL_BYTES = 1 << 16  # metrics.jsonl rows are far shorter


@dataclass(frozen=True)
class Glance:
    """Of its last rows; None where there is none yet. `images_per_second` and `data_wait_fraction` are those of the last row
    of training alone."""

    samples_seen: int = 0
    wall_seconds: float | None = None
    device_seconds: float | None = None
    images_per_second: float | None = None
    data_wait_fraction: float | None = None


def glance_at(run_dir: Path) -> Glance:
    rows = read_rows(run_dir / "metrics.jsonl", TAIL_BYTES)[::-1]
    if not rows:
        return Glance()
    training = next((row for row in rows if row.get("perf/images_per_second") is not None), {})
    return Glance(
        samples_seen=rows[0].get("data/samples_seen", 0),
        wall_seconds=rows[0].get("time/wall_seconds"),
        device_seconds=rows[0].get("time/device_seconds"),
        images_per_second=training.get("perf/images_per_second"),
        data_wait_fraction=training.get("perf/data_wait_fraction"),
    )


def holder_of(run_dir: Path) -> tuple[str | None, int | None]:
    """Host and process id of the run's first rank, as it wrote them down; (None, None) before it did."""
    try:
        pid, _, host = (run_dir / ".lock").read_text().partition(" on ")
        return (host, int(pid)) if host else (None, None)
    except (OSError, ValueError):
        return None, None


def is_held_here(run_dir: Path) -> bool:
    """Whether a process of this host has the run, started by a sweep, by `wandb agent` or by hand. Read from the kernel's
    list: an attempt to lock would be in the way of a run that is just starting. False where there is no such list."""
    host, pid = holder_of(run_dir)
    if host != platform.node():
        return False
    try:
        ending = f":{(run_dir / '.lock').stat().st_ino}"
        lines = [line.split() for line in _LOCKS.read_text().splitlines() if " FLOCK " in line and " -> " not in line]
    except OSError:
        return False
    return any(words[4] == str(pid) and words[5].endswith(ending) for words in lines)

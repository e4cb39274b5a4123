"""How long the cells that are left will take, by the rates that cells of the same kind have shown."""

from __future__ import annotations

import time
from collections.abc import Sequence

from vitlight.sweep.plan import PlannedCell

__all__ = ["TimeLeft"]

REFRESH_SECONDS = 30.0


class TimeLeft:
    """Reads the sweep's results again now and then, so that an estimate is corrected by what was measured since."""

    def __init__(self, unfinished: Sequence[PlannedCell], planned: Sequence[PlannedCell]) -> None:
        self._planned = planned
        self._open = {item.run.run_id: item for item in unfinished}
        self._began: dict[str, float] = {}  # run id -> when, of the running ones
        self._estimates: dict[str, float] = {}  # run id -> wall seconds
        self._next_look = time.monotonic() + REFRESH_SECONDS

    def started(self, planned: PlannedCell) -> None:
        self._began[planned.run.run_id] = time.monotonic()

    def stopped(self, planned: PlannedCell) -> None:
        self._began.pop(planned.run.run_id, None)

    def ended(self, planned: PlannedCell) -> None:
        self.stopped(planned)
        self._open.pop(planned.run.run_id, None)

    def reopened(self, planned: PlannedCell) -> None:
        self._open[planned.run.run_id] = planned

    def seconds(self) -> float | None:
        """Until the last cell's end, with as many at a time as now; None where some cell's rate is not known."""
        now = time.monotonic()
        if now >= self._next_look:
            self._look()
            self._next_look = now + REFRESH_SECONDS
        if not self._open or not self._began or not self._open.keys() <= self._estimates.keys():
            return None
        left = [max(0.0, self._estimates[run_id] - (now - self._began.get(run_id, now))) for run_id in self._open]
        return max(max(left), sum(left) / len(self._began))

    def _look(self) -> None:
        from vitlight.sweep.rates import known_rates

        if any(item.run.settings is None for item in self._open.values()):
            return
        rates = known_rates(self._planned)
        found = {run_id: rates.estimate(item) for run_id, item in self._open.items()}
        self._estimates = {run_id: estimate.wall_seconds for run_id, estimate in found.items() if estimate is not None}

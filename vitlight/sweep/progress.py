"""The runner's voice: one line an event, and in a terminal a bar under them with the time left."""

import time
from collections.abc import Container, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from vitlight.data.progress import duration_text
from vitlight.sweep.plan import PlannedCell
from vitlight.sweep.time_left import TimeLeft

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SweepProgress", "duration_text", "seconds_left"]

STYLES = {
    "done": "green",
    "diverged": "yellow",
    "stopped": "magenta",
    "failed": "red",
    "started": "cyan",
    "running": "cyan",
}


def seconds_left(flops_done: int, flops_left: int, elapsed_seconds: float) -> float | None:
    """Time for `flops_left` at the mean rate so far; None before anything was done."""
    return flops_left * elapsed_seconds / flops_done if flops_done > 0 else None


class SweepProgress(AbstractContextManager["SweepProgress"]):
    """Counts cells by what became of them; rate and time left come from the training FLOPs of cells ended since then.

    `running` are this runner's cells. What other runners of the directory finish counts as done when it is found.
    """

    def __init__(self, planned: Sequence[PlannedCell], finished: Container[str], console: "Console | None") -> None:
        """`finished`: run ids of the cells that had ended before, which take no part in the rate."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = console or Console(highlight=False, soft_wrap=True)
        flops_left = [item.own_train_flops for item in planned if item.run.run_id not in finished]
        self._num_cells, self._num_done = len(planned), len(planned) - len(flops_left)
        self._num_failed = self._num_running = 0
        self._slurm_states: dict[str, str] = {}  # run id -> state
        self._flops_done, self._flops_left = 0, sum(flops_left)
        self._began = time.monotonic()
        self._left = TimeLeft([item for item in planned if item.run.run_id not in finished], planned)
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.fields[summary]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", summary=self.summary())
        self.tick()

    def __enter__(self) -> "SweepProgress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def started(self, planned: PlannedCell) -> None:
        self._num_running += 1
        self._left.started(planned)
        self._event("started", planned, "")

    def ended(self, planned: PlannedCell, state: str, detail: str, ours: bool) -> None:
        """`state`: done, diverged, stopped (ended early) or failed. `ours`: this runner ran it."""
        if self._slurm_states.pop(planned.run.run_id, None) is None:
            self._num_running -= ours
        self._flops_left -= planned.own_train_flops
        self._left.ended(planned)
        if state == "failed":
            self._num_failed += 1
        else:
            self._num_done += 1
            self._flops_done += planned.own_train_flops
        self._event(state, planned, detail if ours else f"{detail} (another runner's)".strip())

    def stopped(self, planned: PlannedCell, detail: str = "") -> None:
        """A cell of this runner has ended without an outcome."""
        self._num_running -= 1
        self._left.stopped(planned)
        self._event("stopped", planned, detail)

    def added(self, planned: PlannedCell) -> None:
        """One more cell."""
        self._num_cells += 1
        self._flops_left += planned.own_train_flops
        self._left.reopened(planned)

    def reopened(self, planned: PlannedCell, state: str) -> None:
        """A cell that had ended in that state is to be run again."""
        if state == "failed":
            self._num_failed -= 1
        else:
            self._num_done -= 1
        self._flops_left += planned.own_train_flops
        self._left.reopened(planned)
        self._event("again", planned, f"was {state}")

    def submitted(self, cells: Sequence[PlannedCell], jobs: str) -> None:
        """Cells were handed to Slurm together."""
        self._slurm_states |= dict.fromkeys((planned.run.run_id for planned in cells), "queued")
        what = cells[0].cell.label if len(cells) == 1 else f"{len(cells)} cells"
        self.say(f"queued   {what}  {'job' if len(cells) == 1 else 'jobs'} {jobs}")
        self.tick()

    def with_slurm(self, planned: PlannedCell, state: str, detail: str) -> None:
        """`state`: running, queued, lost (to be submitted again) or, of jobs that Slurm can't be asked about, unknown."""
        self._slurm_states[planned.run.run_id] = state
        if state == "running":
            self._left.started(planned)
        else:
            self._left.stopped(planned)
        self._event(state, planned, detail)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def tick(self) -> None:
        """Bring the bar up to date; nothing where there is no terminal."""
        total = float(max(1, self._flops_done + self._flops_left))
        self._bar.update(self._task, completed=float(self._flops_done), total=total, summary=self.summary())

    def summary(self) -> str:
        """`3/12 done, 1 failed, 2 running, 6 left, 1.2e+12 FLOP/s, about 4 min left`."""
        elapsed = time.monotonic() - self._began
        parts = [f"{self._num_done}/{self._num_cells} done"]
        parts += [f"{self._num_failed} failed"] if self._num_failed else []
        with_slurm = list(self._slurm_states.values())
        num_running, num_queued = self._num_running + with_slurm.count("running"), with_slurm.count("queued")
        parts += [f"{num_running} running"]
        parts += [f"{num_queued} queued"] if num_queued else []
        num_left = self._num_cells - self._num_done - self._num_failed - num_running - num_queued
        parts += [f"{num_left} left"]
        seconds = self._left.seconds() or seconds_left(self._flops_done, self._flops_left, elapsed)
        if seconds is not None and self._flops_left > 0:
            parts += [f"{self._flops_done / elapsed:.1e} FLOP/s", f"about {duration_text(seconds)} left"]
        return ", ".join(parts)

    def _event(self, state: str, planned: PlannedCell, detail: str) -> None:
        from rich.text import Text

        line = Text()
        line.append(f"{state:<8} ", style=STYLES.get(state, ""))
        line.append(f"{planned.cell.label}  {planned.run.run_id}" + (f"  {detail}" if detail else ""))
        if not self._console.is_terminal:
            line.append(f"  [{self.summary()}]")
        self.tick()
        self._console.print(line, soft_wrap=True)

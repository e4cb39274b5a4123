"""How far training has come: a live line on a terminal, a plain one every ten seconds anywhere else."""

import sys
import time
from typing import TYPE_CHECKING, TextIO

from vitlight.data.progress import duration_text

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["TrainingProgress", "seconds_left"]

LIVE_SECONDS, LINE_SECONDS = 0.5, 10.0


def seconds_left(
    steps_left: int, seconds_per_step: float, evaluations_left: float, seconds_per_evaluation: float | None
) -> float:
    """Time to the end: the steps, and the evaluations to come where one has been timed."""
    return steps_left * seconds_per_step + evaluations_left * (seconds_per_evaluation or 0.0)


class TrainingProgress:
    """One line every so often; `is_due` costs a look at the clock, and what is shown is made only when it is true."""

    def __init__(self, total_steps: int, stream: TextIO | None = None) -> None:
        """stream: stderr by default."""
        self.stream = stream if stream is not None else sys.stderr
        self.is_live = self.stream.isatty()
        self.every_seconds = LIVE_SECONDS if self.is_live else LINE_SECONDS
        self.total_steps = total_steps
        self._shown: float | None = None
        self._bar: Progress | None = None

    def is_due(self, step: int) -> bool:
        """At the first step, the last one, and every so often between."""
        now = time.perf_counter()
        return self._shown is None or now - self._shown >= self.every_seconds or step == self.total_steps

    def show(
        self,
        step: int,
        num_images: int,
        loss: float | None,
        images_per_second: float,
        data_wait: float,
        mfu: float | None,
        memory_gib: float | None,
        seconds_left: float,
    ) -> None:
        """data_wait: a fraction of the time. loss, mfu, memory_gib: None where it is not known."""
        self._shown = time.perf_counter()
        parts = [f"step {step:,} of {self.total_steps:,}", f"images {num_images:,}"]
        parts += [f"loss {loss:.4f}"] if loss is not None else []
        parts += [f"{images_per_second:,.0f} images/s"]
        parts += [f"MFU {mfu:.1%}"] if mfu is not None else []
        parts += [f"data wait {data_wait:.0%}"]
        parts += [f"{memory_gib:.2f} GiB"] if memory_gib is not None else []
        parts += [f"{duration_text(seconds_left)} left"]
        percent = f"{100 * step / self.total_steps:3.0f} %"
        if self.is_live:
            self._show_live(step, f"{percent}  {'  '.join(parts)}")
        else:
            self.stream.write(f"{percent}  {'  '.join(parts)}\n")  # whole, in a log that ranks share
            self.stream.flush()

    def _show_live(self, step: int, text: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            console = Console(file=self.stream)
            # No thread that draws by itself: it would take turns with the training loop.
            columns = (BarColumn(bar_width=20), TextColumn("{task.fields[text]}", markup=False))
            self._bar = Progress(*columns, console=console, auto_refresh=False, transient=True)
            self._bar.add_task("", total=self.total_steps, text="")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=step, text=text)
        self._bar.refresh()

    def close(self) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

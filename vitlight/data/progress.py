"""How far a long job has come: a bar on a terminal, a plain line every few seconds anywhere else."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vitlight.messages import say

__all__ = ["duration_text", "progress"]

BAR_SECONDS = 0.2
LINE_SECONDS = 5.0


def duration_text(seconds: float) -> str:
    """Two units at most, rounded up: 59.2 -> "1 min", 5400 -> "1 h 30 min"."""
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = math.ceil(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


@contextmanager
def progress(title: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """Yields `advance(n)`, which says on stderr that n more of `total` units are done (None: nobody knows how many).

    A job that ends within five seconds and has no terminal prints nothing.
    """
    if sys.stderr.isatty():
        with _bar(title, total, unit) as show:
            yield _every(BAR_SECONDS, show)
            show(0)
    else:
        yield _every(LINE_SECONDS, _plain_lines(title, total, unit))


def _every(seconds: float, show: Callable[[int], None]) -> Callable[[int], None]:
    """`advance(n)` that adds up and calls `show(sum)` at most once in so many seconds."""
    pending, shown = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal pending, shown
        pending += count
        if (now := time.monotonic()) - shown >= seconds:
            show(pending)
            pending, shown = 0, now

    return advance


def _plain_lines(title: str, total: int | None, unit: str) -> Callable[[int], None]:
    done, start = 0, time.monotonic()

    def show(count: int) -> None:
        nonlocal done
        done += count
        rate = done / (time.monotonic() - start)
        of_total = f" of {total:,}" if total else ""
        left = f", {max(total - done, 0) / rate:.0f} s left" if total and rate else ""
        say(f"{title}: {done:,}{of_total} {unit}, {rate:,.0f} a second{left}")

    return show


@contextmanager
def _bar(title: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    rate = TextColumn("{task.fields[rate]}")
    with Progress(*columns, rate, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, rate="")

        def show(count: int) -> None:
            bar.update(task, advance=count)
            if speed := bar.tasks[0].speed:
                bar.update(task, rate=f"{speed:,.0f} a second")

        yield show

import io
import sys

import pytest

from vitlight.data import progress as module
from vitlight.data.progress import progress


class Clock:
    """Time that stands still unless the test moves it."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_plain_lines_every_few_seconds(clock, capsys):
    with progress("Writing", 1000, "images") as advance:
        for _ in range(12):
            clock.now += 1
            advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "Writing: 50 of 1,000 images, 10 a second, 95 s left",
        "Writing: 100 of 1,000 images, 10 a second, 90 s left",
    ]


def test_a_total_that_nobody_knows(clock, capsys):
    with progress("Writing", None, "images") as advance:
        clock.now += 10
        advance(12_000)
    assert capsys.readouterr().err == "Writing: 12,000 images, 1,200 a second\n"


def test_a_short_job_is_silent(capsys):
    with progress("Writing", 3, "images") as advance:
        advance(3)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(module, "BAR_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    with progress("Writing", 40, "images") as advance:
        for _ in range(4):
            advance(10)
    assert "Writing" in terminal.getvalue()
    assert "40/40" in terminal.getvalue()

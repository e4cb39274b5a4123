import io
from types import SimpleNamespace

import pytest

from vitlight.training import progress as module
from vitlight.training.progress import TrainingProgress, seconds_left

FIGURES = {
    "step": 25,
    "num_images": 6400,
    "loss": 1.23456,
    "images_per_second": 1234.5,
    "data_wait": 0.031,
    "mfu": 0.4567,
    "memory_gib": 1.5,
    "seconds_left": 125.0,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_a_plain_line_says_it_all():
    stream = io.StringIO()
    TrainingProgress(100, stream).show(**FIGURES)
    assert stream.getvalue() == (
        " 25 %  step 25 of 100  images 6,400  loss 1.2346  1,234 images/s  MFU 45.7%  data wait 3%  1.50 GiB  3 min left\n"
    )


def test_what_is_not_known_is_left_out():
    stream = io.StringIO()
    TrainingProgress(100, stream).show(**{**FIGURES, "loss": None, "mfu": None, "memory_gib": None})
    assert stream.getvalue() == " 25 %  step 25 of 100  images 6,400  1,234 images/s  data wait 3%  3 min left\n"


def test_a_line_is_due_at_the_first_step_every_ten_seconds_and_at_the_last(clock):
    shown = []
    progress = TrainingProgress(40, io.StringIO())
    for step in range(1, 41):
        if progress.is_due(step):
            shown.append(step)
            progress.show(**{**FIGURES, "step": step})
        clock.now += 1.0
    assert shown == [1, 11, 21, 31, 40]


def test_a_terminal_has_one_live_line_that_is_gone_at_the_end(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal()
    progress = TrainingProgress(100, stream)
    progress.show(**FIGURES)
    clock.now += 0.6
    assert progress.is_due(26)
    progress.show(**{**FIGURES, "step": 26})
    progress.close()
    text = stream.getvalue()
    assert "step 25 of 100" in text
    assert "step 26 of 100" in text
    assert text.rindex("\x1b[2K") > text.rindex("step 26 of 100")  # erased


def test_the_time_left_counts_the_evaluations_to_come():
    assert seconds_left(10, 0.5, 2.5, 4.0) == 15.0
    assert seconds_left(10, 0.5, 2.5, None) == 5.0

import threading

import pytest
from lightning.pytorch.loggers import Logger

from vitlight.training.background_logger import BackgroundLogger, close_reports


class Noting(Logger):
    """Notes its calls, after `gate` has been opened."""

    name, version = "noting", 0

    def __init__(self, is_open=True):
        super().__init__()
        self.calls, self.gate = [], threading.Event()
        self.experiment_made_in = None
        if is_open:
            self.gate.set()

    @property
    def experiment(self):
        self.gate.wait()
        self.experiment_made_in = threading.current_thread()
        return self

    def add_text(self, text):
        self.calls.append(text)

    def log_metrics(self, metrics, step=None):
        self.gate.wait()
        if metrics.get("bad"):
            raise ConnectionError("no route to host")
        self.calls.append((metrics, step))

    def log_hyperparams(self, params, *args, **kwargs):
        self.calls.append(params)


def test_calls_arrive_in_order_from_another_thread():
    inner = Noting()
    logger = BackgroundLogger(inner)
    logger.log_hyperparams({"lr": 1})
    for step in range(100):
        logger.log_metrics({"loss": 0.5}, step)
    assert logger.experiment.experiment.add_text("deep") is None
    close_reports(None, [logger], {}, 0, 30.0)
    assert inner.calls == [{"lr": 1}, *(({"loss": 0.5}, step) for step in range(100)), "deep"]
    assert inner.experiment_made_in is not threading.current_thread()
    assert (logger.name, logger.version) == ("noting", 0)


def test_a_logger_that_fails_costs_one_warning_and_gets_the_next_rows():
    inner = Noting()
    logger = BackgroundLogger(inner)
    with pytest.warns(UserWarning, match=r"Noting failed, metrics.jsonl has every row: no route to host") as caught:
        for step in range(5):
            logger.log_metrics({"bad": step % 2}, step)
        close_reports(None, [logger], {}, 0, 30.0)
    assert len(caught) == 1
    assert [step for _, step in inner.calls] == [0, 2, 4]


def test_a_logger_that_hangs_is_left_behind():
    inner = Noting(is_open=False)
    logger = BackgroundLogger(inner)
    logger.log_metrics({"loss": 0.5}, 0)
    assert logger.experiment is not None  # Lightning asks for it, and doesn't wait
    with pytest.warns(
        UserWarning, match=r"Noting still hangs after 0 s with \d calls to come; metrics.jsonl has every row"
    ):
        close_reports(None, [logger], {}, 0, 0.1)
    inner.gate.set()


def test_what_a_slow_logger_has_no_room_for_is_counted():
    inner = Noting(is_open=False)
    logger = BackgroundLogger(inner, max_waiting=10)
    logger.log_metrics({"loss": 0.5}, 0)
    for step in range(1, 31):
        logger.log_metrics({"loss": 0.5}, step)
    dropped = logger.num_dropped
    assert dropped in (20, 21)  # the thread may have taken the first
    inner.gate.set()
    with pytest.warns(UserWarning, match="Noting was too slow for 2"):
        close_reports(None, [logger], {}, 0, 30.0)
    assert [step for _, step in inner.calls] == list(range(31 - dropped))

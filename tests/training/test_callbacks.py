from types import SimpleNamespace

import pytest
import torch

from vitlight.training import ledger as ledger_module
from vitlight.training.callbacks import Record
from vitlight.training.classifier import ImageClassifier
from vitlight.training.ledger import EVALUATION, STEP
from vitlight.training.record import RunDirectory
from vitlight.training.run_settings import RunSettings


class FakeModule(ImageClassifier):
    """A classifier of which only the counters matter."""

    horizon_steps = 20
    forward_macs = 1000
    samples_seen = 64

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.results = {}

    def axes(self):
        return {"data/samples_seen": 7}


class Noting:
    """A logger, and a projection."""

    def __init__(self):
        self.rows, self.told = [], 0

    def log_metrics(self, metrics, step):
        self.rows.append((metrics, step))

    def rows_written(self):
        self.told += 1


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    return directory


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(ledger_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_a_row_goes_to_the_record_to_the_loggers_and_is_told_to_the_projection(run):
    logger, projection = Noting(), Noting()
    trainer = SimpleNamespace(is_global_zero=True, global_step=3, loggers=[logger])
    record = Record(run, RunSettings())
    record.projection = projection
    record.write_row(trainer, FakeModule(), "train", {"train/loss": 0.5})
    (row,) = run.rows()
    assert (row["event"], row["step"], row["train/loss"], row["data/samples_seen"]) == ("train", 3, 0.5, 7)
    assert logger.rows == [({name: value for name, value in row.items() if "/" in name}, 3)]
    assert projection.told == 1


def test_other_ranks_write_nothing(run):
    trainer = SimpleNamespace(is_global_zero=False, global_step=3, loggers=[])
    Record(run, RunSettings()).write_row(trainer, FakeModule(), "train", {"train/loss": 0.5})
    assert run.rows() == []


def test_clocks_and_sums_go_on_from_the_checkpoint(run, clock):
    """Two ranks, then one: device time is of all of them, evaluation is none of it."""
    first = Record(run, RunSettings())
    first._start(SimpleNamespace(is_global_zero=True))
    first._num_ranks = 2
    first.ledger.enter(STEP)
    clock.now += 10.0
    first.ledger.enter(EVALUATION)
    clock.now += 5.0
    first._strategy = SimpleNamespace(reduce=lambda value, reduce_op: value)
    first._loss_sum, first._loss_steps = torch.tensor(4.5, dtype=torch.float64), 3
    run.append({"step": 1})
    state = first.state_dict()
    run.append({"step": 2})
    clock.now += 1000.0  # the time between two attempts is nobody's
    second = Record(run, RunSettings())
    clock.now += 30.0  # nor is what comes before training
    second.load_state_dict(state)
    clock.now += 30.0
    second._start(SimpleNamespace(is_global_zero=True))
    assert run.rows() == [{"step": 1}]
    assert (second.wall_seconds, second.device_seconds) == (15.0, 20.0)
    assert (second._loss_sum.item(), second._loss_steps) == (4.5, 3)
    second.ledger.enter(STEP)
    clock.now += 1.0
    assert (second.wall_seconds, second.device_seconds) == (16.0, 21.0)
    assert second.ledger.state()["step"] == 11.0


@pytest.mark.parametrize(("peak", "mfu"), [(None, None), (38_400.0, 6 * 1000 * 64 / (10.0 * 38_400.0))])
def test_mfu_is_that_of_the_whole_run_and_null_without_a_peak(run, clock, peak, mfu):
    record = Record(run, RunSettings(peak_flops=peak))
    record.ledger.enter(STEP)
    clock.now += 10.0
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")), precision="32-true", num_devices=1
    )
    summary = record.performance_summary(trainer, FakeModule(), num_workers=0, compiles=False)
    assert summary["perf"] == {
        **{"data_wait": 0, "step": 1, "logging": 0, "checkpoint": 0, "evaluation": 0, "other": 0},
        "startup_seconds": 0.0,
        "mfu": mfu,
    }
    assert summary["verdict"] == f"compute-bound{'' if peak is None else ' (MFU 100%)'}: 100% in steps"

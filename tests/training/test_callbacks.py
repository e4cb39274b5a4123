from types import SimpleNamespace

import pytest
import torch

from vitlight.training.callbacks import Record
from vitlight.training.checkpoints import Checkpoints
from vitlight.training.classifier import ImageClassifier
from vitlight.training.record import RunDirectory


class FakeModule(ImageClassifier):
    """A classifier of which only the counters matter."""

    horizon_steps = 20

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.results = {}

    def axes(self):
        return {"data/samples_seen": 7}


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    return directory


class FailingLogger:
    """A service that is down."""

    calls = 0

    def log_metrics(self, metrics, step):
        self.calls += 1
        raise ConnectionError("no route to host")


def test_a_logger_that_fails_costs_a_warning_and_no_row(run):
    logger = FailingLogger()
    trainer = SimpleNamespace(is_global_zero=True, global_step=3, loggers=[logger])
    record = Record(run, log_every_steps=1)
    with pytest.warns(UserWarning, match="logging failed and goes on in .*metrics.jsonl only: no route to host"):
        record.write_row(trainer, FakeModule(), "train", {"train/loss": 0.5})
    record.write_row(trainer, FakeModule(), "train", {"train/loss": 0.25})  # and warns once
    assert [row["train/loss"] for row in run.rows()] == [0.5, 0.25]
    assert run.rows()[0]["data/samples_seen"] == 7
    assert logger.calls == 2


def test_other_ranks_write_nothing(run):
    trainer = SimpleNamespace(is_global_zero=False, global_step=3, loggers=[FailingLogger()])
    Record(run, log_every_steps=1).write_row(trainer, FakeModule(), "train", {"train/loss": 0.5})
    assert run.rows() == []


def test_clocks_and_sums_go_on_from_the_checkpoint(run):
    first = Record(run, log_every_steps=10)
    first.wall_seconds, first.device_seconds = 100.0, 60.0
    first._loss_sum, first._loss_count = torch.tensor(4.5, dtype=torch.float64), 3
    run.append({"step": 1})
    state = first.state_dict()
    run.append({"step": 2})
    second = Record(run, log_every_steps=10)
    second.load_state_dict(state)
    second._start(SimpleNamespace(is_global_zero=True))
    assert run.rows() == [{"step": 1}]
    assert second.device_seconds == 60.0
    assert 100.0 <= second.wall_seconds < 101.0
    assert (second._loss_sum.item(), second._loss_count) == (4.5, 3)


@pytest.mark.parametrize(
    ("evaluate_every", "after_step", "after_evaluation"),
    [(None, [5, 10, 15, 20], []), (10, [5, 15, 20], [10]), (20, [5, 10, 15, 20], [])],
)
def test_a_checkpoint_follows_the_evaluation_of_its_step(
    run, monkeypatch, evaluate_every, after_step, after_evaluation
):
    saved: list[int] = []
    monkeypatch.setattr("vitlight.training.checkpoints.save_checkpoint", lambda trainer, folder, step: saved.append(step))
    callback, module = Checkpoints(run, every_steps=5, evaluate_every_steps=evaluate_every), FakeModule()
    seen: dict[str, list[int]] = {"step": [], "evaluation": []}
    trainer = SimpleNamespace(accumulate_grad_batches=1, state=SimpleNamespace(fn="fit"))
    for step in range(1, 21):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, None, step - 1)
        seen["step"] += saved
        saved.clear()
        if evaluate_every and step % evaluate_every == 0:
            callback.on_validation_end(trainer, module)
            seen["evaluation"] += saved
            saved.clear()
    assert seen == {"step": after_step, "evaluation": after_evaluation}


def test_no_checkpoint_is_saved_inside_an_accumulation(run, monkeypatch):
    saved: list[int] = []
    monkeypatch.setattr("vitlight.training.checkpoints.save_checkpoint", lambda trainer, folder, step: saved.append(step))
    callback, module = Checkpoints(run, every_steps=1, evaluate_every_steps=None), FakeModule()
    trainer = SimpleNamespace(accumulate_grad_batches=4, global_step=1)
    for batch_idx in range(4):
        callback.on_train_batch_end(trainer, module, None, None, batch_idx)
    assert saved == [1]

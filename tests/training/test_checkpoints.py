"""When a run is saved and what is kept of it: the callback alone, driven step by step."""

import threading
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from vitlight.errors import InputError
from vitlight.training.checkpoint import best_step, newest_checkpoint
from vitlight.training.checkpoints import Checkpoints
from vitlight.training.classifier import ImageClassifier
from vitlight.training.record import RunDirectory
from vitlight.training.run_settings import RunSettings

HORIZON, BATCH = 20, 16


class FakeModule(ImageClassifier):
    """A classifier of which only the counters matter."""

    horizon_steps = HORIZON
    images = SimpleNamespace(plan=SimpleNamespace(global_batch_size=BATCH))

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.results = {}


class FakeTrainer:
    """Steps, and hands a state to whatever writes checkpoints."""

    is_global_zero, accumulate_grad_batches = True, 1

    def __init__(self, world_size=1, clock_says=None):
        self.global_step, self.world_size = 0, world_size
        self.state = SimpleNamespace(fn="fit")
        self.asked = []
        self.strategy = SimpleNamespace(checkpoint_io=TorchCheckpointIO(), broadcast=self._broadcast)
        self.clock_says = clock_says

    def _broadcast(self, value):
        if not isinstance(value, bool):
            return value
        self.asked.append(self.global_step)
        return value if self.clock_says is None else self.clock_says(self.global_step)

    def save_checkpoint(self, path):
        self.strategy.checkpoint_io.save_checkpoint({"step": self.global_step}, path)


class Drive:
    """One attempt at a run of 20 steps, with the accuracy that each evaluation finds."""

    def __init__(self, folder, accuracies=None, trainer=None, also_at=frozenset(), state=None, **settings):
        self.run = RunDirectory(folder)
        self.run.create()
        self.accuracies = accuracies or {}
        every = min(self.accuracies) if self.accuracies else None
        self.seen = []
        self.callback = Checkpoints(
            self.run, RunSettings(**settings), every, also_at, lambda step, path: self.seen.append((step, path.name))
        )
        self.trainer, self.module = trainer or FakeTrainer(), FakeModule()
        self.callback.setup(self.trainer, self.module, "fit")
        if state is not None:
            self.callback.load_state_dict(state)

    def go(self, start=0, stop=HORIZON):
        """From after step `start` until `stop`. Returns (step, "step" or "evaluation") of each save."""
        saves = []
        self.trainer.global_step = start
        self.callback.on_train_start(self.trainer, self.module)
        for step in range(start + 1, stop + 1):
            self.trainer.global_step = step
            before = self.callback.writer.num_saves
            self.callback.on_train_batch_end(self.trainer, self.module, None, None, step - 1)
            if self.callback.writer.num_saves > before:
                saves.append((step, "step"))
            if step in self.accuracies:
                before = self.callback.writer.num_saves
                self.evaluate(step)
                if self.callback.writer.num_saves > before:
                    saves.append((step, "evaluation"))
        self.callback.wait()
        return saves

    def evaluate(self, step):
        self.module.results["val"] = {"top1": self.accuracies[step], "step": step}
        self.callback.on_validation_end(self.trainer, self.module)

    def kept(self):
        return [int(path.name[5:14]) for path in sorted(self.run.checkpoints.glob("step-*.ckpt"))]


def equal(*steps):
    return dict.fromkeys(steps, 0.5)


@pytest.mark.parametrize("in_background", [True, False])
@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ({}, [(5, "step"), (10, "step"), (15, "step"), (20, "step")]),
        (equal(10, 20), [(5, "step"), (10, "evaluation"), (15, "step"), (20, "step")]),
        (equal(20), [(5, "step"), (10, "step"), (15, "step"), (20, "step")]),
        (equal(4, 8, 12, 16, 20), [(5, "step"), (10, "step"), (15, "step"), (20, "step")]),
    ],
)
def test_a_checkpoint_follows_the_evaluation_of_its_step(tmp_path, accuracies, expected, in_background):
    drive = Drive(tmp_path, accuracies, checkpoint_every_steps=5, checkpoint_async=in_background)
    assert drive.go() == expected
    assert drive.kept() == [15, 20]
    assert drive.seen == [(step, f"step-{step:09d}.ckpt") for step, _ in expected]


def test_no_checkpoint_is_saved_inside_an_accumulation(tmp_path):
    drive = Drive(tmp_path, checkpoint_every_steps=1)
    drive.trainer.accumulate_grad_batches, drive.trainer.global_step = 4, 1
    saves = []
    for batch_idx in range(4):
        drive.callback.on_train_batch_end(drive.trainer, drive.module, None, None, batch_idx)
        saves.append(drive.callback.writer.num_saves)
    drive.callback.wait()
    assert saves == [0, 0, 0, 1]


def test_the_first_step_at_or_past_each_milestone_is_kept(tmp_path):
    # Steps of 16 images: 1 image is reached by step 1, 32 by step 2, 33 and 48 by step 3, and 320 by the last.
    settings = {"checkpoint_every_steps": 100, "keep_checkpoints": 1, "milestone_samples": [1, 32, 33, 48, 320]}
    drive = Drive(tmp_path, **settings)
    assert [step for step, _ in drive.go()] == [1, 2, 3, 20]
    assert drive.kept() == [1, 2, 3, 20]
    again = Drive(tmp_path, **settings, state={"best": None})  # what a milestone is follows from the settings alone
    again.go(start=3)
    assert again.kept() == [1, 2, 3, 20]


def test_milestones_that_cannot_be_are_told(tmp_path, capsys):
    with pytest.raises(InputError, match=r"run.milestone_samples has 321, past the run's end at 320 samples seen"):
        Drive(tmp_path, milestone_samples=[321])
    with pytest.raises(InputError, match=r"run.milestone_samples has 0, which is not at least 1"):
        RunSettings(milestone_samples=[0])
    Drive(tmp_path, milestone_samples=[48]).go(start=10)
    assert "run.milestone_samples: step 3 is over and was not kept" in capsys.readouterr().err


def test_steps_asked_for_are_saved_in_the_order_of_training_and_kept_until_the_end(tmp_path):
    drive = Drive(tmp_path, checkpoint_every_steps=8, keep_checkpoints=1, also_at=frozenset({3, 7}))
    assert [step for step, _ in drive.go(stop=19)] == [3, 7, 8, 16]
    assert drive.kept() == [3, 7, 16]
    assert [step for step, _ in drive.seen] == [3, 7, 8, 16]
    again = Drive(tmp_path, checkpoint_every_steps=8, keep_checkpoints=1, also_at=frozenset({3, 7}))
    again.go(start=16)
    assert again.kept() == [20]


BEST = {4: 0.25, 8: 0.5, 12: 0.5, 16: 0.375, 20: 0.4375}


def test_the_best_is_the_earliest_of_the_highest(tmp_path):
    drive = Drive(tmp_path, BEST, keep_best=True, checkpoint_every_steps=100, keep_checkpoints=1)
    assert drive.go() == [(4, "evaluation"), (8, "evaluation"), (20, "step")]
    assert best_step(drive.run.checkpoints) == 8
    assert torch.load(drive.run.checkpoints / "best.ckpt", weights_only=True) == {"step": 8}
    assert drive.kept() == [20]


@pytest.mark.parametrize("killed_at", range(1, 21))
def test_the_best_is_the_same_after_a_kill_at_any_step(tmp_path, killed_at):
    settings = {"keep_best": True, "checkpoint_every_steps": 3, "keep_checkpoints": 2}
    first = Drive(tmp_path, BEST, **settings)
    states = {0: {"best": None}}
    save = first.trainer.save_checkpoint

    def note_and_save(path):
        states[first.trainer.global_step] = first.callback.state_dict()
        save(path)

    first.trainer.save_checkpoint = note_and_save
    first.go(stop=killed_at)
    found = newest_checkpoint(first.run.checkpoints)
    start = 0 if found is None else found[0]
    for path in first.run.checkpoints.glob("best.*"):
        if states[start]["best"] is not None and states[start]["best"][0] == start:
            path.unlink()  # the kill came after the checkpoint and before its second name
    again = Drive(tmp_path, BEST, state=states[start], **settings)
    again.go(start=start)
    if start == HORIZON:  # the final evaluation is made again, outside of a fit
        again.trainer.state.fn = "validate"
        again.evaluate(HORIZON)
    assert best_step(again.run.checkpoints) == 8


def test_a_best_of_steps_that_are_run_again_is_forgotten(tmp_path):
    settings = {"keep_best": True, "checkpoint_every_steps": 2, "keep_checkpoints": 9}
    Drive(tmp_path, {4: 0.25, 8: 0.75}, **settings).go(stop=8)
    assert best_step(tmp_path / "checkpoints") == 8
    Drive(tmp_path, {4: 0.25, 8: 0.125}, state={"best": (4, 0.25)}, **settings).go(start=6, stop=8)
    assert best_step(tmp_path / "checkpoints") == 4
    Drive(tmp_path, {4: 0.25, 8: 0.125}, **settings).go(stop=1)  # from the beginning
    assert best_step(tmp_path / "checkpoints") is None
    assert list((tmp_path / "checkpoints").glob("best.*")) == []


def test_a_last_evaluation_that_is_the_best_names_the_last_checkpoint(tmp_path):
    drive = Drive(tmp_path, {10: 0.25, 20: 0.75}, keep_best=True, checkpoint_every_steps=100)
    assert drive.go() == [(10, "evaluation"), (20, "step")]
    assert best_step(drive.run.checkpoints) == 20


def test_the_best_needs_evaluations(tmp_path):
    with pytest.raises(InputError, match=r"run.keep_best=true needs held-out images; set data.val_fraction above 0"):
        Drive(tmp_path, keep_best=True)


def test_minutes_are_counted_from_the_last_save(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    drive = Drive(tmp_path, checkpoint_every_steps=8, checkpoint_every_minutes=0.5)
    on_end = drive.callback.on_train_batch_end

    def ten_seconds_a_step(*args):
        now[0] += 10.0
        on_end(*args)

    monkeypatch.setattr(drive.callback, "on_train_batch_end", ten_seconds_a_step)
    assert [step for step, _ in drive.go()] == [3, 6, 8, 11, 14, 16, 19, 20]


def test_ranks_follow_the_clock_of_the_first_one_and_ask_at_logged_steps_alone(tmp_path):
    trainer = FakeTrainer(world_size=2, clock_says=lambda step: step in (6, 15))
    drive = Drive(
        tmp_path, trainer=trainer, checkpoint_every_steps=100, checkpoint_every_minutes=1e-9, log_every_steps=3
    )
    assert [step for step, _ in drive.go()] == [6, 15, 20]
    assert trainer.asked == [3, 6, 9, 12, 15, 18]


def test_a_stop_saves_any_step_once_and_only_returns_when_it_is_on_disk(tmp_path):
    drive = Drive(tmp_path, checkpoint_every_steps=5)
    drive.go(stop=7)
    for _ in range(2):
        drive.callback.save_now(drive.trainer, drive.module)
        assert newest_checkpoint(drive.run.checkpoints)[0] == 7
    assert drive.callback.writer.num_saves == 2
    again = Drive(tmp_path, checkpoint_every_steps=5)
    again.go(start=7, stop=7)
    again.callback.save_now(again.trainer, again.module)
    assert again.callback.writer.num_saves == 0


def test_an_exception_waits_for_the_save_in_flight_and_hides_nothing(tmp_path):
    drive = Drive(tmp_path, checkpoint_every_steps=5)
    opened = threading.Event()
    drive.callback.on_saved = lambda step, path: opened.wait(60)
    drive.trainer.global_step = 5
    drive.callback.on_train_batch_end(drive.trainer, drive.module, None, None, 4)
    threading.Timer(0.1, opened.set).start()
    drive.callback.on_exception(drive.trainer, drive.module, RuntimeError("elsewhere"))
    assert opened.is_set()
    assert newest_checkpoint(drive.run.checkpoints)[0] == 5


def test_waiting_saves_are_counted_at_the_end(tmp_path, capsys):
    drive = Drive(tmp_path, checkpoint_every_steps=5)
    writer, opened = drive.callback.writer, threading.Event()
    drive.callback.on_saved = lambda step, path: opened.wait(60)
    settle = writer.settle

    def let_go_and_settle():
        if writer.num_saves:
            opened.set()
        settle()

    writer.settle = let_go_and_settle
    drive.go()
    drive.callback.on_fit_end(drive.trainer, drive.module)
    assert writer.num_waits >= 1
    assert f"{writer.num_waits} of 4 checkpoints waited for the one before" in capsys.readouterr().err


def test_another_writer_of_checkpoints_is_refused(tmp_path):
    trainer = FakeTrainer()
    trainer.strategy.checkpoint_io = AsyncCheckpointIO()
    with pytest.raises(InputError, match=r"trainer.plugins=AsyncCheckpointIO would write the checkpoints"):
        Drive(tmp_path, trainer=trainer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_checkpoints": 0}, "run.keep_checkpoints=0 is not at least 1"),
        ({"checkpoint_every_minutes": 0.0}, "run.checkpoint_every_minutes=0.0 is not above 0"),
        ({"checkpoint_every_minutes": float("nan")}, "run.checkpoint_every_minutes=nan is not above 0"),
    ],
)
def test_settings_that_keep_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        RunSettings(**settings)

"""Runs that a file asks to stop, as `vitlight sweep stop` does where no signal reaches."""

import json

import pytest

from tests.conftest import fit_args as fit_args_fixture
from tests.training.test_run import assert_bit_equal, final_state, rows_without_times
from tests.training.zygote import free_port, open_zygote, rank_environment
from vitlight.training import stop_file
from vitlight.training.record import RunDirectory
from vitlight.training.stop_file import StopFile


@pytest.fixture(scope="module")
def zygote():
    with open_zygote() as zygote:
        yield zygote


def args_for(tiny_shards, root, **at):
    """12 steps, evaluated after 4, 8 and 12."""
    args = [*fit_args_fixture.__wrapped__(tiny_shards, root), "--data.eval_batch_size=8"]
    if not at:
        return args
    callback = {"class_path": "tests.training.stop_file_at.StopFileAt", "init_args": {"once": f"{root}/once", **at}}
    return [*args, f"--trainer.callbacks={json.dumps([callback])}"]


def run_in(root):
    (path,) = (root / "runs" / "tiny").iterdir()
    return RunDirectory(path)


@pytest.fixture(scope="module")
def whole(zygote, tiny_shards, tmp_path_factory):
    """A run that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    assert zygote.run(args_for(tiny_shards, root), root / "log") == 0, (root / "log").read_text()
    return run_in(root)


def assert_same_run(run, whole):
    assert rows_without_times(run) == rows_without_times(whole)
    left, right = final_state(run), final_state(whole)
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert_bit_equal(left[key], right[key], key)
    assert run.read_result()["top1_count"] == whole.read_result()["top1_count"]


@pytest.mark.parametrize(("moment", "step", "stopped_at"), [("train", 6, 7), ("fit_val", 4, 4)])
def test_the_run_saves_and_ends_and_goes_on_in_spite_of_the_file(
    zygote, whole, tiny_shards, tmp_path, moment, step, stopped_at
):
    log, args = tmp_path / "log", args_for(tiny_shards, tmp_path, moment=moment, step=step)
    assert zygote.run(args, log) == 75, log.read_text()
    run = run_in(tmp_path)
    assert f"stopped at step {stopped_at} of 12; the same command goes on\n" in log.read_text()
    assert max(run.checkpoints.glob("*.ckpt")).name == f"step-{stopped_at:09d}.ckpt"
    assert StopFile(run.path).path.exists()
    assert zygote.run(args, log) == 0, log.read_text()
    assert not StopFile(run.path).path.exists()
    assert_same_run(run, whole)


def test_both_ranks_stop_at_one_step_where_the_first_finds_the_file(zygote, whole, tiny_shards, tmp_path):
    args = [*args_for(tiny_shards, tmp_path, moment="train", step=3), "--trainer.devices=2", "--trainer.strategy=ddp"]
    port = free_port()
    logs = [tmp_path / f"log-{rank}" for rank in range(2)]
    pids = [zygote.start(args, logs[rank], rank_environment(rank, 2, port)) for rank in range(2)]
    assert [zygote.exit_code(pid) for pid in pids] == [75, 75], logs[0].read_text() + logs[1].read_text()
    assert "of 12; the same command goes on" in logs[0].read_text()
    run = run_in(tmp_path)
    (step,) = {int(path.stem.partition("-")[2]) for path in run.checkpoints.glob("step-*.ckpt")}
    assert 4 <= step < 12
    assert zygote.run(args_for(tiny_shards, tmp_path), tmp_path / "log") == 0
    assert run.read_result()["samples_seen"] == whole.read_result()["samples_seen"]


def test_a_file_is_looked_for_now_and_then_and_stays_found(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(stop_file.time, "monotonic", lambda: now)
    file = StopFile(tmp_path)
    assert not file.is_there()
    file.request()
    assert not file.is_there()
    now += stop_file.LOOK_SECONDS
    assert file.is_there()
    file.withdraw()
    file.withdraw()
    now += stop_file.LOOK_SECONDS
    assert file.is_there()
    assert not StopFile(tmp_path).is_there()

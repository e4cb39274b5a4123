"""Runs that a file asks to stop, as `vitlight sweep stop` does where no signal reaches."""

import pytest

from tests.training.stopped_runs import args_for, at_moment, run_in, whole_run
from tests.training.test_run import assert_bit_equal, final_state, rows_without_times
from tests.training.zygote import free_port, rank_environment
from vitlight.training import stop_file
from vitlight.training.stop_file import StopFile


def asked_to_stop(tiny_shards, root, moment, step):
    return [*args_for(tiny_shards, root), *at_moment("stop_file_at.StopFileAt", root, moment=moment, step=step)]


@pytest.fixture(scope="module")
def whole(zygote, tiny_shards, tmp_path_factory):
    """A run that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    return whole_run(zygote, args_for(tiny_shards, root), root)


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
    log, args = tmp_path / "log", asked_to_stop(tiny_shards, tmp_path, moment, step)
    assert zygote.run(args, log) == 75, log.read_text()
    run = run_in(tmp_path)
    assert f"stopped at step {stopped_at} of 12; the same command goes on\n" in log.read_text()
    assert max(run.checkpoints.glob("*.ckpt")).name == f"step-{stopped_at:09d}.ckpt"
    assert StopFile(run.path).path.exists()
    assert zygote.run(args, log) == 0, log.read_text()
    assert not StopFile(run.path).path.exists()
    assert_same_run(run, whole)


def test_both_ranks_stop_at_one_step_where_the_first_finds_the_file(zygote, whole, tiny_shards, tmp_path):
    args = [*asked_to_stop(tiny_shards, tmp_path, "train", 3), "--trainer.devices=2", "--trainer.strategy=ddp"]
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

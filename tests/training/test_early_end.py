"""Runs that are asked to end early: where they do, on how many ranks, and what their results say."""

import pytest

from tests.training.stopped_runs import args_for, at_moment, run_in, whole_run
from tests.training.test_run import rows_without_times
from tests.training.zygote import free_port, rank_environment
from vitlight.analysis import load_runs, summarise


def on_any_ranks(tiny_shards, root):
    return [*args_for(tiny_shards, root), "--trainer.devices=auto"]


def asked_to_end(tiny_shards, root, moment, step):
    at = at_moment("end_request_at.EndRequestAt", root, moment=moment, step=step)
    return [*on_any_ranks(tiny_shards, root), *at]


@pytest.fixture(scope="module")
def whole(zygote, tiny_shards, tmp_path_factory):
    """A run that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    return whole_run(zygote, on_any_ranks(tiny_shards, root), root)


@pytest.mark.parametrize(
    ("moment", "step", "ended_at", "num_ranks"),
    [("train", 4, 6, 1), ("fit_val", 4, 4, 1), ("train", 4, 6, 2)],
)
def test_a_run_ends_where_it_next_logs_or_evaluates(
    zygote, whole, tiny_shards, tmp_path, moment, step, ended_at, num_ranks
):
    log, args = tmp_path / "log", asked_to_end(tiny_shards, tmp_path, moment, step)
    if moment == "fit_val":  # measured at this very step, and still no result's
        args += ["--run.few_shot_every=16", "--run.few_shot_shots=[1]", "--run.few_shot_seeds=1"]
    port = free_port()
    envs = [rank_environment(rank, num_ranks, port) if num_ranks > 1 else {} for rank in range(num_ranks)]
    codes = [zygote.exit_code(pid) for pid in [zygote.start(args, log, env) for env in envs]]
    assert codes == [0] * num_ranks, log.read_text()
    assert f"ended early, at step {ended_at} of 12: hyperband: val/top1 0.1 is too low" in log.read_text()
    assert "Traceback" not in log.read_text()
    run = run_in(tmp_path)
    result = run.read_result()
    assert (result["status"], result["reason"]) == ("stopped", "hyperband: val/top1 0.1 is too low")
    assert (result["samples_seen"], result["horizon_samples"]) == (16 * ended_at, 192)
    assert {result[name] for name in ("top1", "val_top1", "eval_split")} == {None}
    assert not [name for name in result if name.startswith("few_shot")]
    rows = [row for row in rows_without_times(run) if row["event"] != "few_shot"]
    if num_ranks == 1:
        assert rows == rows_without_times(whole)[: len(rows)]
    assert rows[-1]["step"] == ended_at
    assert zygote.run(args, log) == 0
    assert "stopped already, nothing to do" in log.read_text()
    runs = load_runs(tmp_path / "runs")
    assert (runs["status"].tolist(), runs["reason"].tolist()) == (["stopped"], [result["reason"]])
    assert len(summarise(runs)) == 0


def test_a_request_at_the_horizon_comes_too_late(zygote, whole, tiny_shards, tmp_path):
    log = tmp_path / "log"
    assert zygote.run(asked_to_end(tiny_shards, tmp_path, "fit_val", 12), log) == 0, log.read_text()
    run = run_in(tmp_path)
    assert run.read_result()["status"] == "done"
    assert rows_without_times(run) == rows_without_times(whole)

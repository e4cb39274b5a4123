"""Runs that begin with the steps of another: branches of a trunk, and extensions."""

import dataclasses
import json

import pytest

from tests.training.test_run import assert_bit_equal, final_state, rows_without_times
from vitlight.cli import main
from vitlight.training.origin import Origin, Trunk, read_origin
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run

SMALL = "--model.model_options={depth: 1, width: 16, mlp_dim: 32, dropout_rate: 0.1}"


@pytest.fixture
def wsd_args(fit_args):
    schedule = {"name": "wsd", "warmup_fraction": "null", "warmup_samples": "32", "cooldown_fraction": "0.25"}
    return [*fit_args, SMALL, *(f"--model.schedule.{name}={value}" for name, value in schedule.items())]


def resolved(args, *more):
    return resolve_run([*args, *more])


def fit(args, *more):
    assert main([*args, *more]) == 0
    return RunDirectory(resolved(args, *more).run_dir)


def train_rows(run):
    return [row for row in rows_without_times(run) if row["event"] == "train"]


def test_a_run_that_begins_on_the_trunk_ends_as_one_that_did_all_steps(wsd_args, tmp_path, capfd):
    alone = fit(wsd_args, f"--run.root={tmp_path / 'alone'}", "--run.share_trunk=false")
    short = fit(wsd_args, "--model.duration.samples=128")
    assert read_origin(short) is None
    result = short.read_result()
    assert (result["origin"], result["own_train_flops"]) == (None, result["train_flops"])
    capfd.readouterr()
    branch = fit(wsd_args)
    assert f"begins on the trunk of run {short.path.name}, after 96 images" in capfd.readouterr().err
    for key in ("state_dict", "optimizer_states"):
        assert_bit_equal(final_state(branch)[key], final_state(alone)[key], key)
    assert train_rows(branch) == train_rows(alone)
    mine, its = branch.read_result(), alone.read_result()
    for name in ("run_id", "samples_seen", "unique_samples_seen", "train_flops", "top1_count", "loss", "val_loss"):
        assert mine[name] == its[name], name
    assert mine["own_train_flops"] == 6 * mine["forward_macs"] * (192 - 96)
    assert mine["origin"]["step"] == 6
    assert 0 < mine["own_device_seconds"] < mine["device_seconds"]
    # The cooldown of 12 steps begins after 9: the longer run left its state there, too.
    trunk = resolved(wsd_args).trunk
    assert [trunk.has(step) for step in (5, 6, 9)] == [False, True, True]
    # And the next one takes the longest that lies before its own cooldown.
    capfd.readouterr()
    between = fit(wsd_args, "--model.duration.samples=176")  # cools down after 8.25 steps
    assert read_origin(between).step == 6
    # A branch that was killed goes on from its own checkpoint and keeps its origin.
    for path in (branch.result_path, max(branch.checkpoints.glob("*.ckpt"))):
        path.unlink()
    fit(wsd_args)
    assert branch.read_result()["own_train_flops"] == mine["own_train_flops"]
    assert train_rows(branch) == train_rows(alone)


def test_what_shares_a_trunk(wsd_args):
    trunk = resolved(wsd_args).trunk
    assert trunk.last_step == 9
    for same in ("duration.samples=320", "schedule.cooldown_fraction=0.5", "schedule.final_fraction=0.1"):
        assert resolved(wsd_args, f"--model.{same}").trunk.folder == trunk.folder, same
    for other in ("--model.optimizer.lr=2.0e-3", "--seed_everything=1", "--model.schedule.warmup_samples=48"):
        assert resolved(wsd_args, other).trunk.folder != trunk.folder, other
    by_fraction = [*wsd_args, "--model.schedule.warmup_samples=null", "--model.schedule.warmup_fraction=0.1"]
    assert resolved(by_fraction).trunk.folder != resolved(by_fraction, "--model.duration.samples=320").trunk.folder
    assert resolved(wsd_args, "--run.share_trunk=false").trunk is None
    assert resolved(wsd_args, "--run.share_trunk=false").run_id == resolved(wsd_args).run_id


def test_a_trunk_is_left_once_and_a_torn_state_is_passed_over(tmp_path):
    def finished(name, content):
        run = RunDirectory(tmp_path / name)
        run.create()
        figure = "insight/96/radii.png"
        run.append({"event": "insight", "name": name, "figures": {"insight/radii": figure, "insight/lost": "lost.png"}})
        (run.path / figure).parent.mkdir(parents=True)
        (run.path / figure).write_bytes(content)
        checkpoint = run.checkpoints / "step-000000006.ckpt"
        checkpoint.write_bytes(content)
        return run, checkpoint

    from vitlight.training.checkpoint import commit_checkpoint

    trunk = Trunk(tmp_path / "trunk", 7)
    for name in ("first", "second"):
        run, checkpoint = finished(name, name.encode())
        commit_checkpoint(checkpoint.rename(tmp_path / "beside"), checkpoint)
        trunk.leave(run, checkpoint, Origin("trunk", name, 6, 96, 1.5))
    new = RunDirectory(tmp_path / "new")
    new.create()
    assert dataclasses.replace(trunk, last_step=5).join(new) is None, "it lies in the cooldown"
    assert trunk.join(new) == Origin("trunk", "first", 6, 96, 1.5) == read_origin(new)
    assert (new.checkpoints / "step-000000006.ckpt").read_bytes() == b"first"
    assert new.metrics_path.read_bytes() == (tmp_path / "first" / "metrics.jsonl").read_bytes()
    assert (new.path / "insight" / "96" / "radii.png").read_bytes() == b"first"  # the picture that its row names
    assert trunk.join(new) is None, "it has a checkpoint of its own"
    (trunk.folder / "step-000000006" / "step-000000006.ckpt").unlink()
    (trunk.folder / "step-000000006" / "step-000000006.ckpt").write_bytes(b"torn")
    other = RunDirectory(tmp_path / "other")
    other.create()
    assert trunk.join(other) is None


def test_a_finished_run_is_extended_and_both_are_told_apart(fit_args, capfd):
    args = [*fit_args, SMALL]
    base = fit(args, "--model.duration.samples=96")
    capfd.readouterr()
    longer = fit(args, f"--run.extend={base.path.name}")
    assert f"goes on from the end of run {base.path.name}, after 96 images" in capfd.readouterr().err
    result = longer.read_result()
    assert result["run_id"] == longer.path.name not in (base.path.name, resolved(args).run_id)
    assert result["origin"]["kind"] == "extension"
    assert result["origin"]["run_id"] == base.path.name
    assert (result["origin"]["step"], result["samples_seen"]) == (6, 192)
    assert result["own_train_flops"] == result["train_flops"] // 2
    assert [row["step"] for row in longer.rows() if row["event"] == "train"] == [2, 4, 6, 8, 10, 12]
    # From step 6 on the rate is that of the new horizon.
    rates = {row["step"]: row["train/learning_rate"] for row in longer.rows() if row["event"] == "train"}
    assert rates[6] < rates[8] > rates[10]
    assert json.loads((longer.path / "origin.json").read_text()) == result["origin"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--run.extend=000000000000"], r"run.extend=000000000000 is no finished run in "),
        (["--run.extend=../x"], "run.extend='../x' is not a run id"),
        (["--run.extend={base}"], "run.extend={base} has seen 96 images, and model.duration asks for 96 in all"),
        (
            ["--run.extend={base}", "--model.duration.samples=192", "--model.optimizer.lr=5.0e-4"],
            "run.extend={base} differs in more than model.duration and model.schedule",
        ),
    ],
)
def test_what_can_not_be_extended_is_named(fit_args, capfd, more, message):
    args = [*fit_args, SMALL, "--model.duration.samples=96"]
    base = resolved(args)
    if "{base}" in more[0]:
        fit(args)
    capfd.readouterr()
    assert main([*args, *(part.replace("{base}", base.run_id) for part in more)]) == 2
    error = capfd.readouterr().err
    assert message.replace("{base}", base.run_id) in error
    assert error.count("\n") == 1

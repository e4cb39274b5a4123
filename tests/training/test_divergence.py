"""Runs whose numbers stop being finite: noticed at the right step on every rank, ended or set back, never half saved."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import fit_args as fit_args_fixture
from tests.training.test_callbacks import FakeModule
from tests.training.test_run import assert_bit_equal, final_state, rows_without_times
from tests.training.zygote import free_port, open_zygote, rank_environment
from vitlight.analysis import write_report
from vitlight.cli import main
from vitlight.errors import InputError
from vitlight.training.checkpoint import newest_checkpoint
from vitlight.training.divergence import Diverged, Divergence
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run

METRICS = ("top1", "top5", "loss", "top1_count", "num_eval_samples", "val_top1", "val_top5", "val_loss", "eval_split")


def args_for(tiny_shards: Path, root: Path, **poison) -> list[str]:
    """12 steps, a checkpoint after each, a row after 6 and 12, evaluated after 4, 8 and 12."""
    args = [
        *fit_args_fixture.__wrapped__(tiny_shards, root),
        "--run.checkpoint_every_steps=1",
        "--run.log_every_steps=6",
        '--model.model_options={"depth": 1, "width": 16, "mlp_dim": 32, "num_heads": 2}',
    ]
    value = [{"class_path": "tests.training.poison.Poison", "init_args": poison}]
    return [*args, f"--trainer.callbacks={json.dumps(value)}"] if poison else args


def run_in(root: Path) -> RunDirectory:
    (path,) = (root / "runs" / "tiny").iterdir()
    return RunDirectory(path)


def checkpoints(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in run.checkpoints.glob("*.ckpt"))


def assert_whole_checkpoints_are_finite(run: RunDirectory) -> None:
    for path in run.checkpoints.glob("step-*.ckpt"):
        for name, value in torch.load(path, weights_only=True)["state_dict"].items():
            assert value.isfinite().all(), (path, name)


@pytest.mark.parametrize(
    ("poison", "reason", "last_good"),
    [
        ({"what": "loss", "step": 7}, "the training loss is not finite at step 7", 6),
        ({"what": "loss", "step": 1}, "the training loss is not finite at step 1", None),
        ({"what": "weights", "step": 9}, "the weights or the optimizer's state are not finite at step 9", 8),
        (
            {"what": "evaluation", "step": 4},
            "of the 40 val images, 3 have logits or a loss that is not finite at step 4",
            3,
        ),
        ({"what": "evaluation", "step": 12}, "of the 40 val images, 3 have .* not finite at step 12", 11),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_run_that_is_no_longer_finite_ends_as_diverged(tiny_shards, tmp_path, capsys, poison, reason, last_good):
    args = args_for(tiny_shards, tmp_path, **poison)
    assert main(args) == 3
    run = run_in(tmp_path)
    result = run.read_result()
    assert result["status"] == "diverged"
    assert {result[name] for name in METRICS} == {None}
    assert result["rollbacks"] == []
    assert re.fullmatch(reason, result["reason"])
    named = None if last_good is None else f"checkpoints/step-{last_good:09d}.ckpt"
    assert result["last_good_checkpoint"] == named
    assert newest_checkpoint(run.checkpoints) == (None if named is None else (last_good, run.path / named))
    assert_whole_checkpoints_are_finite(run)
    assert f"diverged: {result['reason']}" in capsys.readouterr().err
    assert main(args) == 3  # and is not run again
    assert "diverged already" in capsys.readouterr().out


def test_between_rows_and_saves_the_device_is_not_asked(tmp_path):
    """Values are kept as they come; the first bad step is found among them later, inside an accumulation too."""
    callback, module = Divergence(None, log_every_steps=10), FakeModule()
    reduced = []

    def reduce(values, reduce_op):
        assert reduce_op == "min"
        reduced.append(values.tolist())
        return values

    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=reduce)
    trainer = SimpleNamespace(accumulate_grad_batches=2, strategy=strategy)
    for batch in range(18):
        trainer.global_step = (batch + 1) // 2
        module.logit_sum = torch.tensor(math.inf if batch in (12, 15) else 1.0)  # in steps 7 and 8
        loss = torch.tensor(math.nan if batch == 15 else 1.0)
        callback.on_train_batch_end(trainer, module, {"loss": loss}, None, batch)
    assert reduced == []
    trainer.global_step = 10
    with pytest.raises(Diverged, match="the logits are not finite at step 7") as caught:
        callback.on_train_batch_end(trainer, module, {"loss": torch.tensor(1.0)}, None, 19)
    assert caught.value.step == 7
    assert reduced[0][:2] == [8, 7]


@pytest.mark.parametrize("where", ["state_dict", "raw_state_dict", "optimizer_states"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_checkpoint_that_is_not_finite_is_written(where, value):
    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=lambda values, reduce_op: values)
    trainer = SimpleNamespace(strategy=strategy, global_step=5)
    good = {"step": torch.tensor(3), "ratio": 0.5, "exp_avg": torch.full((3,), 3e38), "half": torch.ones(2).bfloat16()}
    checkpoint = {name: [{"state": {0: dict(good)}}] for name in ("state_dict", "raw_state_dict", "optimizer_states")}
    callback = Divergence(None, log_every_steps=10)
    callback.on_save_checkpoint(trainer, FakeModule(), checkpoint)
    checkpoint[where][0]["state"][0]["half"][1] = value
    with pytest.raises(Diverged, match="the weights or the optimizer's state are not finite at step 5"):
        callback.on_save_checkpoint(trainer, FakeModule(), checkpoint)


@pytest.fixture(scope="module")
def set_back(tiny_shards, tmp_path_factory):
    """A run that diverged in step 7, went back to step 6, and trained on to its end at half the rate."""
    root = tmp_path_factory.mktemp("back")
    args = [*args_for(tiny_shards, root, what="loss", step=7), "--model.rollback_lr_factor=0.5"]
    assert main(args) == 0
    return args, run_in(root)


def test_a_run_goes_back_once_and_on_at_a_lower_rate(set_back, tiny_shards, tmp_path):
    _, run = set_back
    result = run.read_result()
    assert result["status"] == "done"
    assert result["top1"] == result["top1_count"] / 61
    reason = "the training loss is not finite at step 7"
    assert result["rollbacks"] == [{"step": 7, "reason": reason, "resumed_from_step": 6, "lr_factor": 0.5}]
    assert result["last_good_checkpoint"] is None
    rows = run.rows()
    assert [(row["event"], row["step"]) for row in rows] == [
        *(("val", 4), ("train", 6), ("rollback", 6), ("val", 8), ("train", 12), ("val", 12), ("test", 12)),
    ]
    assert (rows[2]["rollback/step"], rows[2]["rollback/lr_factor"]) == (7, 0.5)
    assert main([*args_for(tiny_shards, tmp_path), "--model.rollback_lr_factor=0.5"]) == 0
    undisturbed = run_in(tmp_path)
    assert undisturbed.read_result()["rollbacks"] == []
    rates = [
        [row["train/learning_rate"] for row in each.rows() if row["event"] == "train"] for each in (run, undisturbed)
    ]
    assert rates[0] == [rates[1][0], 0.5 * rates[1][1]]


@pytest.mark.parametrize("step", [6, 7, 11])
def test_a_run_that_went_back_resumes_exactly_and_does_not_go_back_again(set_back, tmp_path, tiny_shards, step, capsys):
    """Killed right after it went back (6), after the step that had diverged (7), and near its end."""
    _, whole = set_back
    poison = args_for(tiny_shards, tmp_path, what="loss", step=7)
    args = [*poison, "--model.rollback_lr_factor=0.5", "--run.keep_checkpoints=20"]
    assert main(args) == 0
    run = run_in(tmp_path)
    for path in run.checkpoints.glob("*.ckpt"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
    run.result_path.unlink()
    capsys.readouterr()
    assert main(args) == 0
    told = capsys.readouterr().err
    assert f"resumes at step {step} of 12" in told
    assert "diverged" not in told
    assert rows_without_times(run) == rows_without_times(whole)
    assert run.read_result()["rollbacks"] == whole.read_result()["rollbacks"]
    left, right = final_state(run), final_state(whole)
    for name in ("state_dict", "optimizer_states", "vitlight"):
        assert_bit_equal(left[name], right[name], name)


def test_the_second_divergence_ends_the_run(tiny_shards, tmp_path):
    args = args_for(tiny_shards, tmp_path, what="weights", step=1, always=True)
    assert main([*args, "--model.rollback_lr_factor=0.1"]) == 3
    run = run_in(tmp_path)
    result = run.read_result()
    assert (result["status"], result["top1"], result["last_good_checkpoint"]) == ("diverged", None, None)
    assert [(each["step"], each["resumed_from_step"]) for each in result["rollbacks"]] == [(1, 0)]
    assert [row["event"] for row in run.rows()] == ["rollback"]


def test_the_last_checkpoint_is_not_resumed_where_its_evaluation_was_not_finite(tiny_shards, tmp_path):
    args = args_for(tiny_shards, tmp_path, what="evaluation", step=12)
    assert main([*args, "--model.rollback_lr_factor=0.5"]) == 0
    run = run_in(tmp_path)
    assert run.read_result()["rollbacks"][0]["resumed_from_step"] == 11
    assert [row["step"] for row in run.rows() if row["event"] == "val"] == [4, 8, 12]
    assert "bad-step-000000012.ckpt" in checkpoints(run)


def test_all_ranks_notice_what_one_of_them_sees_and_go_back_together(tiny_shards, tmp_path):
    with open_zygote() as zygote:
        for name, more, codes in (("ends", [], [3, 3]), ("back", ["--model.rollback_lr_factor=0.5"], [0, 0])):
            root, port = tmp_path / name, free_port()
            root.mkdir()
            args = [*args_for(tiny_shards, root, what="loss", step=7, rank=1), *more]
            args += ["--trainer.devices=2", "--trainer.strategy=ddp"]
            pids = [zygote.start(args, root / f"log{rank}", rank_environment(rank, 2, port)) for rank in (0, 1)]
            assert [zygote.exit_code(pid) for pid in pids] == codes, (root / "log0").read_text()
    result = run_in(tmp_path / "ends").read_result()
    assert result["reason"] == "the training loss is not finite at step 7"
    assert result["last_good_checkpoint"] == "checkpoints/step-000000006.ckpt"
    run = run_in(tmp_path / "back")
    assert [row["step"] for row in run.rows() if row["event"] == "rollback"] == [6]
    assert run.read_result()["rollbacks"][0]["resumed_from_step"] == 6
    assert final_state(run)["vitlight"]["step"] == 12


def test_the_report_lists_a_diverged_run_and_counts_it_nowhere(tiny_shards, tmp_path):
    assert main(args_for(tiny_shards, tmp_path)) == 0
    done = run_in(tmp_path)
    args = [*args_for(tiny_shards, tmp_path, what="loss", step=3), "--seed_everything=1"]
    assert main(args) == 3
    page = write_report(tmp_path / "runs", tmp_path / "report").read_text()
    apart = page[page.index("<h2>Not counted</h2>") : page.index("<h2>Runs</h2>")]
    assert apart.count("<tr>") == 2
    for shown in (
        *("diverged", "vit_nano1", "the training loss is not finite at step 3"),
        *("checkpoints/step-000000002.ckpt", resolve_run(args).run_id),
    ):
        assert shown in apart, shown
    summary = (tmp_path / "report" / "summary.csv").read_text().splitlines()
    assert len(summary) == 2
    assert repr(done.read_result()["top1"]) in summary[1]


def test_a_rate_that_does_not_fall_is_refused(fit_args):
    for factor in (0.0, 1.0):
        with pytest.raises(InputError, match=rf"model\.rollback_lr_factor={factor} is not between 0 and 1"):
            resolve_run([*fit_args, f"--model.rollback_lr_factor={factor}"])

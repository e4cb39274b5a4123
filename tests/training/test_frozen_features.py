"""Few-shot accuracy while a run trains: what `vitlight probe` says, exact over resumes, and nothing else changes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import fit_args as fit_args_fixture
from tests.training.ranks import Ranks
from tests.training.test_run import assert_bit_equal, final_state, rows_without_times
from vitlight.cli import main
from vitlight.errors import InputError
from vitlight.training.frozen_features import FrozenFeatures
from vitlight.training.ledger import EVALUATION, verdict
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run
from vitlight.training.run_settings import RunSettings

OPTIONS = '--model.model_options={"depth": 1, "width": 16, "mlp_dim": 32, "num_heads": 2}'
accounts_of: dict[Path, list[int]] = {}  # where the time of each measurement went, by run directory
FEW_SHOT = ("--run.few_shot_every=60", "--run.few_shot_shots=[1, 5]", "--run.few_shot_seeds=2")


def args_for(tiny_shards: Path, root: Path, *options: str) -> list[str]:
    return [*fit_args_fixture.__wrapped__(tiny_shards, root), OPTIONS, "--model.ema_decay=0.8", *options]


def run_of(args: list[str]) -> RunDirectory:
    return RunDirectory(resolve_run(args).run_dir)


@pytest.fixture(scope="module")
def measured(tiny_shards, tmp_path_factory) -> tuple[list[str], RunDirectory]:
    args = args_for(tiny_shards, tmp_path_factory.mktemp("measured"), *FEW_SHOT)
    measure, accounts = FrozenFeatures._measure, []

    def noting(self: FrozenFeatures, *given: Any) -> dict[str, float | int]:
        accounts.append(self.record.ledger.enter(EVALUATION))
        return measure(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenFeatures, "_measure", noting)
        assert main(args) == 0
    run = run_of(args)
    accounts_of[run.path] = accounts
    return args, run


def few_shot_rows(run: RunDirectory) -> list[dict]:
    return [row for row in run.rows() if row["event"] == "few_shot"]


def test_rows_come_every_so_many_images_with_every_axis(measured):
    _, run = measured
    rows = few_shot_rows(run)
    assert [row["data/samples_seen"] for row in rows] == [64, 128, 192]  # the first steps of 16 past 60, 120 and 180
    for row in rows:
        assert row["few_shot/num_images"] == 40
        assert (row["few_shot/1_shot"] * 80).is_integer()  # two subsets of 40 images
        assert row["few_shot/5_shot_std"] >= 0
        assert row["compute/train_flops"] > 0
    result = run.read_result()
    assert result["few_shot/5_shot"] == rows[-1]["few_shot/5_shot"]
    assert result["probe_split"] == "val"


def assert_last_row_is_what_a_probe_says(run: RunDirectory, tmp_path: Path) -> None:
    output = tmp_path / "probe.json"
    probe = ["probe", str(run.path), "--device=cpu", "--shots=1,5", "--seeds=2", f"--output={output}"]
    # The official test set is left out: the callback doesn't read it.
    config = run.experiment_path.read_text()
    try:
        lines = ["  test: null" if line.startswith("  test: ") else line for line in config.splitlines()]
        run.experiment_path.write_text("\n".join(lines) + "\n")
        assert main(probe) == 0
    finally:
        run.experiment_path.write_text(config)
    (record,) = json.loads(output.read_text())["probes"].values()
    assert record["split"] == "val"
    last = few_shot_rows(run)[-1]
    assert {score["column"]: score["top1"] for score in record["scores"]} == {
        name: last[name] for name in ("few_shot/1_shot", "few_shot/5_shot")
    }


def test_the_last_row_is_what_a_probe_of_the_average_says(measured, tmp_path):
    assert_last_row_is_what_a_probe_says(measured[1], tmp_path)


def test_averaged_batch_statistics_are_those_of_rank_0_on_every_rank(zygote, tiny_shards, tmp_path):
    """Each rank's own run through its own images, and the average that is saved and evaluated is rank 0's."""
    ranks = Ranks(zygote, tiny_shards, tmp_path)
    skew = '--trainer.callbacks=[{"class_path": "tests.training.poison.SkewStatistics"}]'
    run = ranks.fit(
        "norm", 2, "--model.arch=resnet_nano1", "--model.ema_decay=0.8", "--data.eval_batch_size=7", skew, *FEW_SHOT
    )
    assert_last_row_is_what_a_probe_says(run, tmp_path)


def test_training_goes_on_as_if_nothing_had_happened(measured, tiny_shards, tmp_path):
    _, run = measured
    args = args_for(tiny_shards, tmp_path)
    assert main(args) == 0
    plain = run_of(args)
    assert plain.path.name == run.path.name  # no part of the run's identity
    others = [row for row in rows_without_times(run) if row["event"] != "few_shot"]
    assert others == rows_without_times(plain)
    for part in ("state_dict", "raw_state_dict", "optimizer_states"):
        assert_bit_equal(final_state(run)[part], final_state(plain)[part])
    assert "few_shot/5_shot" not in plain.read_result()


@pytest.mark.parametrize("step", [4, 7, 8])  # where a row is due, after it, and where one is due again
def test_a_stopped_and_resumed_run_has_each_row_once(measured, tiny_shards, tmp_path, step):
    callback = {
        "class_path": "tests.training.signal_at.SignalAt",
        "init_args": {"moment": "train", "step": step, "once": str(tmp_path / "sent")},
    }
    args = args_for(tiny_shards, tmp_path, *FEW_SHOT, f"--trainer.callbacks={json.dumps([callback])}")
    assert main(args) == 75
    assert main(args) == 0
    assert rows_without_times(run_of(args)) == rows_without_times(measured[1])


def test_its_time_counts_as_evaluation(measured):
    _, run = measured
    assert accounts_of[run.path] == [EVALUATION] * 3


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--data.val_fraction=0.0"], "run.few_shot_every needs held-out images; set data.val_fraction above 0"),
        (["--run.few_shot_shots=[5, 500]"], "500 shots: class 0 has "),
    ],
)
def test_what_can_not_be_measured_ends_the_run_before_it_begins(tiny_shards, tmp_path, capsys, options, line):
    assert main(args_for(tiny_shards, tmp_path, *FEW_SHOT, *options)) == 2
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"few_shot_every": 0}, "run.few_shot_every=0 is not at least 1 image"),
        ({"few_shot_every": 9, "few_shot_seeds": 0}, "run.few_shot_seeds=0 is not at least 1"),
        ({"few_shot_every": 9, "few_shot_shots": [5, 5]}, r"run.few_shot_shots=\[5, 5\] is not a list of different"),
        ({"few_shot_every": 9, "few_shot_l2": 0.0}, "run.few_shot_l2=0.0 is not above 0"),
        ({"few_shot_shots": [5]}, "mean nothing without run.few_shot_every"),
    ],
)
def test_settings_are_checked(settings, line):
    with pytest.raises(InputError, match=line):
        RunSettings(**settings)


def test_a_run_that_measures_too_often_is_told_so():
    shares = {"data_wait": 0.0, "step": 0.4, "logging": 0.0, "checkpoint": 0.0, "evaluation": 0.6, "other": 0.0}
    line = verdict(shares, None, 2, RunSettings(few_shot_every=60), num_cores=8)
    assert line.endswith("; lower run.num_evaluations=10, or raise run.few_shot_every=60")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_measure_what_one_does(measured, zygote, tiny_shards, tmp_path, strategy):
    ranks = Ranks(zygote, tiny_shards, tmp_path)
    run = ranks.fit("two", 2, OPTIONS, "--model.ema_decay=0.8", *FEW_SHOT, f"--trainer.strategy={strategy}")
    names = ("step", "few_shot/num_images", "few_shot/1_shot", "few_shot/5_shot", "few_shot/5_shot_std")
    expected = [[row[name] for name in names] for row in few_shot_rows(measured[1])]
    assert [[row[name] for name in names] for row in few_shot_rows(run)] == expected

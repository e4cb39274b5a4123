"""Looks inside the network while a run trains: what `vitlight inspect` sees, exact over resumes; nothing else changes."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from tests.conftest import fit_args as fit_args_fixture
from tests.training.fake_wandb import FakeWandb
from tests.training.test_run import assert_bit_equal, final_state, rows_without_times, run_cli
from vitlight.cli import main
from vitlight.errors import InputError
from vitlight.training.insight import own_images
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run
from vitlight.training.run_settings import RunSettings
from vitlight.training.trained import load_trained

OPTIONS = '--model.model_options={"depth": 2, "width": 16, "mlp_dim": 32, "num_heads": 2}'
LOOKS = ("--run.inspect_every=90", "--run.inspect_images=8")


def args_for(tiny_shards: Path, root: Path, *options: str) -> list[str]:
    return [*fit_args_fixture.__wrapped__(tiny_shards, root), OPTIONS, "--model.ema_decay=0.8", *options]


def run_of(args: list[str]) -> RunDirectory:
    return RunDirectory(resolve_run(args).run_dir)


@pytest.fixture(scope="module")
def watched(tiny_shards, tmp_path_factory) -> tuple[list[str], RunDirectory]:
    args = args_for(tiny_shards, tmp_path_factory.mktemp("watched"), *LOOKS)
    assert main(args) == 0
    return args, run_of(args)


def looks(run: RunDirectory) -> list[dict]:
    return [row for row in run.rows() if row["event"] == "insight"]


def test_rows_come_every_so_many_images_with_pages_and_figures(watched):
    _, run = watched
    rows = looks(run)
    assert [row["data/samples_seen"] for row in rows] == [96, 192]  # steps of 16: the first past 90 and past 180
    names = {"attention_distance", "attention_entropy", "attention_maps", "components", "filters", "positions"}
    for row in rows:
        assert 0 < row["insight/attention_distance_px/layer_01"] < 28 * 2**0.5
        assert row["insight/receptive_radius_90_px/block_1"] > row["insight/receptive_radius_90_px/patches"]
        assert row["compute/train_flops"] > 0
        assert set(row["figures"]) == {f"insight/{name}" for name in (*names, "receptive_fields")}
        for file in row["figures"].values():
            with Image.open(run.path / file) as picture:
                picture.verify()
        folder = run.path / "insight" / f"{row['data/samples_seen']:012}"
        assert "96 samples seen" in (run.path / "insight/000000000096/insight.html").read_text()
        assert json.loads((folder / "insight.json").read_text())[0]["num_images"] == 8


def test_the_last_look_is_what_inspect_sees_of_the_average(watched, tmp_path):
    _, run = watched
    out = tmp_path / "out"
    assert main(["inspect", str(run.path), "--num-images=8", "--device=cpu", f"--output={out}"]) == 0
    afterwards = json.loads((out / "insight.json").read_text())[0]
    during = json.loads((run.path / "insight" / "000000000192" / "insight.json").read_text())[0]
    for key in ("attention", "receptive_field"):
        for one, other in zip(afterwards[key], during[key], strict=True):
            told = {
                name: value if isinstance(value, str) else pytest.approx(value, rel=1e-4)
                for name, value in other.items()
            }
            assert one == told


def test_training_goes_on_as_if_nothing_had_happened(watched, tiny_shards, tmp_path):
    _, run = watched
    args = args_for(tiny_shards, tmp_path)
    assert main(args) == 0
    plain = run_of(args)
    assert plain.path.name == run.path.name  # no part of the run's identity
    assert [row for row in rows_without_times(run) if row["event"] != "insight"] == rows_without_times(plain)
    for part in ("state_dict", "raw_state_dict", "optimizer_states"):
        assert_bit_equal(final_state(run)[part], final_state(plain)[part])


@pytest.mark.parametrize("step", [6, 9])  # where a row is due, and later
def test_a_stopped_and_resumed_run_has_each_row_once(watched, tiny_shards, tmp_path, step):
    callback = {
        "class_path": "tests.training.signal_at.SignalAt",
        "init_args": {"moment": "train", "step": step, "once": str(tmp_path / "sent")},
    }
    args = args_for(tiny_shards, tmp_path, *LOOKS, f"--trainer.callbacks={json.dumps([callback])}")
    assert main(args) == 75
    assert main(args) == 0
    assert rows_without_times(run_of(args)) == rows_without_times(watched[1])


def test_two_ranks_write_what_one_does(watched, tiny_shards, tmp_path):
    args = args_for(tiny_shards, tmp_path, *LOOKS, "--trainer.devices=2")
    run_cli(args)
    for row, alone in zip(looks(run_of(args)), looks(watched[1]), strict=True):
        assert row["figures"] == alone["figures"]
        seen = {name: value for name, value in row.items() if name.startswith("insight/")}
        assert seen == {name: pytest.approx(alone[name], rel=1e-3) for name in seen}


def test_wandb_gets_the_figures_as_images(tiny_shards, tmp_path, monkeypatch):
    fake = FakeWandb(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("FAKE_WANDB_CALLS", str(fake.calls_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    args = args_for(tiny_shards, tmp_path, "--run.inspect_every=192", "--run.inspect_images=2", "--run.wandb=true")
    assert main(args) == 0
    (row,) = looks(run_of(args))
    (logged,) = [call[0] for call in fake.calls("log") if "insight/filters" in call[0]]
    for name, file in row["figures"].items():
        assert logged[name] == f"image {run_of(args).path.resolve() / file}"
    assert logged["data/samples_seen"] == 192
    assert logged["insight/attention_entropy_nats/layer_00"] == row["insight/attention_entropy_nats/layer_00"]


def test_images_are_held_out_ones_evenly_spread_and_always_the_same(watched):
    _, run = watched
    trained = load_trained(run.path)
    data = trained.open_data(num_workers=0)
    held_out = torch.cat([batch["image"][batch["weight"] > 0] for batch in data.val_dataloader()])
    assert torch.equal(own_images(data, 8), held_out[[0, 6, 11, 17, 22, 28, 33, 39]])
    assert torch.equal(own_images(data, 1000), held_out)
    without = trained.open_data(num_workers=0, val_fraction=0.0)
    official = torch.cat([batch["image"][batch["weight"] > 0] for batch in without.test_dataloader()])
    assert torch.equal(own_images(without, 2), official[[0, 60]])
    with pytest.raises(InputError, match=r"data.val_fraction=0.0 and data.test=null: there are no held-out images"):
        own_images(trained.open_data(num_workers=0, val_fraction=0.0, test=None), 2)


def test_split_weights_are_refused_before_training(tiny_shards, tmp_path, capsys):
    args = args_for(tiny_shards, tmp_path, *LOOKS, "--trainer.strategy=fsdp2")
    args.remove("--model.ema_decay=0.8")
    assert main(args) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vitlight: error: run.inspect_every needs whole weights, and trainer.strategy=fsdp2 splits")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"inspect_every": 0}, "run.inspect_every=0 is not at least 1 image"),
        ({"inspect_every": 9, "inspect_images": 0}, "run.inspect_images=0 is not at least 1 image"),
        ({"inspect_images": 5}, "run.inspect_images=5 means nothing without run.inspect_every"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, line):
    with pytest.raises(InputError, match=line):
        RunSettings(**settings)

"""The table of transfers: which runs make a cell, what is chosen and by what, and what is told apart."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.analysis.fake_runs import result
from vitlight.analysis.transfer_table import build_transfer_table
from vitlight.cli import main
from vitlight.errors import InputError
from vitlight.sweep import load_sweep

VIT = ("vit_nano1", "weights/vit.npz", "a" * 32)
RESNET = ("resnet_nano2", "weights/resnet.npz", "b" * 32)


class Folder:
    """Fine-tuning runs with made-up results."""

    def __init__(self, path):
        self.path, self.count = path, 0

    def add(self, task, top1, val_top1, *, model=VIT, lr=0.01, seed=0, final=False, data=None, **changes):
        self.count += 1
        run = self.path / "finals" / f"{self.count:04d}" if final else self.path / "search" / f"{self.count:04d}"
        run.mkdir(parents=True)
        arch, weights, digest = model
        changes = {"run_id": run.name} | changes
        made = result(arch, 1000, seed, top1=top1, val_top1=val_top1, lr=lr, data_digest=task, **changes)
        (run / "result.json").write_text(json.dumps(made))
        config = {
            "seed_everything": seed,
            "model": {
                **{"arch": arch, "weights": weights, "weights_digest": digest, "seed": seed},
                **{"optimizer": {"lr": lr}, "schedule": {"name": "cosine"}},
            },
            "data": {"train": f"data/{task}/train", "test": f"data/{task}/test", "seed": seed}
            | {"val_fraction": 0.0 if final else 0.1}
            | (data or {}),
            "trainer": {"precision": "32-true", "gradient_clip_val": 1.0},
        }
        (run / "experiment.yaml").write_text(yaml.safe_dump(config))
        return run


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "runs")


def test_the_rate_is_chosen_on_held_out_images_and_read_on_the_test_set(folder):
    for seed in (0, 1, 2):
        folder.add("pets", 0.90 + seed / 100, 0.80, lr=0.01, seed=seed)
        folder.add("pets", 0.99, 0.70, lr=0.03, seed=seed)  # better on the test set alone
        folder.add("pets", 0.95, [0.99, 0.5, 0.5][seed], lr=0.003, seed=seed)  # one lucky seed
    table = build_transfer_table([folder.path])
    (cell,) = table.cells.values()
    assert (cell.checkpoint, cell.task, cell.lr, cell.num_settings) == ("weights/vit.npz", "pets", 0.01, 3)
    assert cell.values == pytest.approx((0.90, 0.91, 0.92))
    assert cell.mean == pytest.approx(0.91)
    assert cell.std == pytest.approx(0.01)
    assert cell.val_top1 == pytest.approx(0.80)
    assert not cell.is_edge


def test_of_equal_settings_those_with_the_lowest_rate_are_taken(folder):
    for lr in (0.03, 0.001, 0.01):
        folder.add("pets", 0.9 + lr, 0.80, lr=lr)
    (cell,) = build_transfer_table([folder.path]).cells.values()
    assert (cell.lr, cell.values, cell.is_edge) == (0.001, (0.901,), True)


def test_runs_on_all_images_stand_for_their_cell(folder):
    folder.add("pets", 0.90, 0.85, lr=0.01)
    folder.add("pets", 0.89, 0.80, lr=0.03)
    for seed in (0, 1):
        folder.add("pets", 0.93 + seed / 100, None, lr=0.01, seed=seed, final=True)
    (cell,) = build_transfer_table([folder.path]).cells.values()
    assert cell.values == pytest.approx((0.93, 0.94))
    assert (cell.num_settings, cell.val_top1, cell.is_edge) == (2, None, True)


def test_several_settings_without_held_out_images_are_not_chosen_among(folder):
    folder.add("pets", 0.90, None, lr=0.01, final=True)
    folder.add("pets", 0.95, None, lr=0.03, final=True)
    folder.add("cars", 0.70, 0.60)
    table = build_transfer_table([folder.path])
    assert table.tasks == ("cars",)
    assert table.left_out == (
        "pets of weights/vit.npz: 2 settings (rates 0.01, 0.03), and no held-out images to choose by; name the folder of "
        "one",
    )


def test_a_copied_folder_adds_no_seed(folder, tmp_path):
    runs = [folder.add("pets", top1, 0.8, seed=seed) for seed, top1 in enumerate((0.90, 0.94))]
    shutil.copytree(folder.path, tmp_path / "copy")
    table = build_transfer_table([folder.path, tmp_path / "copy"])
    (cell,) = table.cells.values()
    assert cell.values == (0.90, 0.94)
    assert cell.std == pytest.approx(0.04 / 2**0.5)
    assert table.left_out == (f"2 runs found in another folder too, such as {runs[0]}",)


def test_of_two_copies_the_one_that_ended_later_counts(folder):
    folder.add("pets", 0.90, 0.8, run_id="one", finished_at="2026-11-25T00:00:00Z")
    folder.add("pets", 0.70, 0.8, run_id="one", finished_at="2026-11-24T00:00:00Z")
    (cell,) = build_transfer_table([folder.path]).cells.values()
    assert cell.values == (0.90,)


@pytest.mark.parametrize("words", [[], ["--csv", "cells.csv"], ["--final", "final.yaml"], ["--json"]])
def test_where_no_cell_can_be_shown_the_reason_is_one_line(folder, words, capsys):
    folder.add("pets", 0.90, None, lr=0.01, final=True)
    folder.add("pets", 0.95, None, lr=0.03, final=True)
    assert main(["transfer", str(folder.path), *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        "no cell can be shown: pets of weights/vit.npz: 2 settings (rates 0.01, 0.03), and no held-out images" in said
    )


def test_a_mean_is_over_all_tasks_or_there_is_none(folder):
    folder.add("pets", 0.90, 0.8)
    folder.add("cars", 0.70, 0.6)
    folder.add("pets", 0.95, 0.8, model=RESNET)
    table = build_transfer_table([folder.path])
    vit, resnet = ("weights/vit.npz", "vit_nano1", 32), ("weights/resnet.npz", "resnet_nano2", 32)
    assert table.rows == (resnet, vit)
    assert table.tasks == ("cars", "pets")
    assert table.mean(vit) == pytest.approx(0.80)
    assert table.mean(resnet) is None


def test_what_is_another_set_or_another_checkpoint_is_told_apart(folder):
    folder.add("pets", 0.9, 0.8)
    folder.add("pets", 0.8, 0.7, data={"num_train_samples": 1000})
    folder.add("pets", 0.7, 0.6, data={"num_train_samples_per_class": 10})
    folder.add("pets", 0.6, 0.5, data={"train_fraction": 0.05})
    folder.add("cars", 0.5, 0.4, data={"train": ["data/cars/train/*.tar", "data/vans/train"]})
    folder.add("cars", 0.4, 0.3, model=("vit_nano1", "weights/vit.npz", "c" * 32))
    folder.add("pets", 0.3, 0.2, model=("vit_nano1", None, None))
    table = build_transfer_table([folder.path])
    assert table.tasks == ("cars", "cars+vans", "pets", "pets 10 a class", "pets 1000", "pets 5 %")
    assert [row[0] for row in table.rows] == ["from scratch", "weights/vit.npz (aaaaaa)", "weights/vit.npz (cccccc)"]


def test_one_content_under_two_names_is_one_checkpoint(folder):
    folder.add("pets", 0.9, 0.8, seed=0)
    folder.add("pets", 0.7, 0.8, seed=1, model=("vit_nano1", "copies/vit.npz", "a" * 32))
    (cell,) = build_transfer_table([folder.path]).cells.values()
    assert cell.values == (0.9, 0.7)


def test_the_mean_over_classes_where_a_task_asks_for_it(folder):
    folder.add("pets", 0.9, 0.8, mean_class_top1=0.85)
    folder.add("cars", 0.7, 0.6, mean_class_top1=0.65)
    table = build_transfer_table([folder.path], ["pets"])
    assert {cell.task: cell.values for cell in table.cells.values()} == {"pets": (0.85,), "cars": (0.7,)}
    with pytest.raises(InputError, match=r"--mean-class: birds is none of the tasks cars, pets"):
        build_transfer_table([folder.path], ["birds"])


def test_runs_that_have_not_ended_well_are_told(folder):
    folder.add("pets", 0.9, 0.8)
    folder.add("pets", None, None, lr=0.1, status="diverged", reason="loss nan")
    folder.add("pets", None, None, lr=0.2, status="diverged", reason="loss nan")
    table = build_transfer_table([folder.path])
    assert table.left_out == (f"2 runs diverged, such as {folder.path / 'search' / '0002'}: loss nan",)
    assert next(iter(table.cells.values())).num_settings == 1


def test_the_command_prints_the_table_and_writes_the_final_sweep(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for lr, val in ((0.01, 0.8), (0.03, 0.7), (0.003, 0.6)):
        folder.add("pets", 0.9123, val, lr=lr)
        folder.add("cars", 0.7, val if lr != 0.003 else 0.99, lr=lr)
    final = tmp_path / "final.yaml"
    assert main(["transfer", str(folder.path), "--final", str(final), "--seeds", "3"]) == 0
    out = capsys.readouterr().out
    assert "91.23 (1) @ 0.01 of 3" in out
    assert "70.00 (1) @ 0.003 of 3!" in out  # the lowest of the rates
    assert "80.61" in out or "80.62" in out  # the mean over both tasks
    assert f"2 cells x 3 seeds on all training images: vitlight sweep run {final}" in out
    sweep = load_sweep(final)
    assert sweep.name == "search_final"
    cells = sweep.cells()
    assert len(cells) == 6
    chosen = {cell.parameters["config"] for cell in cells}
    lrs = [yaml.safe_load(Path(path).read_text())["model"]["optimizer"]["lr"] for path in sorted(chosen)]
    assert lrs == [0.01, 0.003]
    assert cells[0].args == (
        "fit",
        f"--config={cells[0].parameters['config']}",
        "--data.val_fraction=0.0",
        "--seed_everything=0",
    )


def test_the_command_as_json_and_csv(folder, tmp_path, capsys):
    runs = [folder.add("pets", 0.9 + seed / 100, 0.8, seed=seed) for seed in (0, 1)]
    path = tmp_path / "cells.csv"
    assert main(["transfer", str(folder.path), "--json", "--csv", str(path)]) == 0
    (cell,) = json.loads(capsys.readouterr().out)
    assert cell["top1_values"] == [0.9, 0.91]
    assert cell["top1_mean"] == pytest.approx(0.905)
    assert (cell["n"], cell["num_settings"], cell["runs"]) == (2, 1, [str(run) for run in runs])
    header, row = path.read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["top1_values"] == "0.9 0.91"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "2"], "--seeds is about the sweep that --final writes"),
        (["--final", "x.yaml", "--seeds", "0"], "--seeds 0 is not at least 1"),
        (["--final", "absent/x.yaml"], "--final=absent/x.yaml can't be written: No such file or directory"),
    ],
)
def test_options_that_do_not_fit_are_one_line(folder, words, message, capsys):
    folder.add("pets", 0.9, 0.8)
    assert main(["transfer", str(folder.path), *words]) == 2
    assert message in capsys.readouterr().err

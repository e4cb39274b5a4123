"""Cells beside the grid: planned, run and shown with the others."""

import argparse
import json

import pytest

from tests.sweep import fake_fit
from vitlight.errors import InputError
from vitlight.sweep import load_sweep, plan_sweep, sweep_status
from vitlight.sweep.added import ADDED, append_added, combinations, parse_setting, read_added
from vitlight.sweep.control_command import add_command
from vitlight.sweep.recorded_plan import record_plan, recorded_plan


@pytest.fixture
def sweep(write_sweep):
    return load_sweep(write_sweep({"model.arch": ["ok_1", "ok_2"], "seed_everything": [0, 1], "data.width": [7]}))


@pytest.mark.parametrize(
    ("word", "setting"),
    [
        ("--model.arch=vit_s16", ("model.arch", "vit_s16")),
        ("--seed_everything=3", ("seed_everything", 3)),
        ("--model.optimizer.lr=1.0e-3", ("model.optimizer.lr", 0.001)),
        (
            "--config={model: {arch: a, optimizer: {lr: 0.1}}}",
            ("config", {"model": {"arch": "a", "optimizer": {"lr": 0.1}}}),
        ),
        ("--data.train=a=b.tar", ("data.train", "a=b.tar")),
    ],
)
def test_a_setting_is_read_as_in_a_sweep_file(word, setting):
    assert parse_setting(word) == setting


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.arch=vit_s16", "is no setting of the cells to add; write --model.arch=vit_s16"),
        ("--model.arch", "is no setting of the cells to add"),
        ("--data.test=null", 'parameter data.test has null, which W&B hands over as the text None; quote it: "null"'),
    ],
)
def test_what_is_no_setting_is_refused(word, message):
    with pytest.raises(InputError, match=message.replace("|", r"\|")):
        parse_setting(word)


def test_what_is_not_named_has_all_the_values_of_the_file(sweep):
    cells = combinations(sweep, [("model.arch", "ok_3"), ("model.lr", 0.1), ("model.lr", 0.2)])
    assert [(each["model.arch"], each["model.lr"], each["seed_everything"], each["data.width"]) for each in cells] == [
        ("ok_3", 0.1, 0, 7),
        ("ok_3", 0.1, 1, 7),
        ("ok_3", 0.2, 0, 7),
        ("ok_3", 0.2, 1, 7),
    ]
    assert len(combinations(sweep, [("seed_everything", 5)])) == 2


def test_added_cells_come_after_the_grid_and_stay_when_the_file_changes(sweep, write_sweep, tmp_path):
    directory = tmp_path / "demo"
    append_added(directory, combinations(sweep, [("model.arch", "ok_3"), ("seed_everything", 0)]), 0)
    append_added(directory, combinations(sweep, [("model.arch", "ok_3"), ("seed_everything", 1)]), 1)
    planned = plan_sweep(sweep, fake_fit.resolve, tmp_path)
    assert [item.cell.index for item in planned] == [0, 1, 2, 3, 4, 5]
    assert [item.cell.label for item in planned[4:]] == [f"model.arch=ok_3 seed_everything={seed}" for seed in (0, 1)]
    assert planned[4].args[:-2] == (
        "fit",
        "--config=base.yaml",
        "--data.width=7",
        "--model.arch=ok_3",
        "--seed_everything=0",
    )
    rows = sweep_status(sweep, fake_fit.resolve, tmp_path)
    assert [row["parameters"]["model.arch"] for row in rows] == ["ok_1"] * 2 + ["ok_2"] * 2 + ["ok_3"] * 2
    wider = load_sweep(write_sweep({"model.arch": ["ok_1"], "seed_everything": [0], "data.width": [8]}))
    again = plan_sweep(wider, fake_fit.resolve, tmp_path)
    assert [item.run.run_id for item in again[1:]] == [item.run.run_id for item in planned[4:]]


def test_a_setting_that_only_added_cells_have_names_them(write_sweep, tmp_path):
    sweep = load_sweep(write_sweep({"model.arch": ["ok_1"], "seed_everything": [0, 1]}))
    append_added(tmp_path / "demo", combinations(sweep, [("model.lr", 0.5), ("seed_everything", 0)]), 0)
    labels = [item.cell.label for item in plan_sweep(sweep, fake_fit.resolve, tmp_path)]
    assert labels == ["seed_everything=0", "seed_everything=1", "model.lr=0.5 seed_everything=0"]


@pytest.mark.parametrize("devices", [[], [4]], ids=["the same settings", "one more that changes nothing"])
def test_added_cells_that_the_file_comes_to_have_are_its_own(
    sweep, write_sweep, tmp_path, monkeypatch, capsys, devices
):
    append_added(tmp_path / "demo", combinations(sweep, [("model.arch", "ok_3")]), 0)
    axes = {"model.arch": ["ok_1", "ok_2", "ok_3"], "seed_everything": [0, 1], "data.width": [7]}
    path = write_sweep(axes | ({"trainer.devices": devices} if devices else {}))
    planned = plan_sweep(load_sweep(path), fake_fit.resolve, tmp_path)
    assert [item.cell.index for item in planned] == [0, 1, 2, 3, 4, 5]
    assert len({item.run.run_id for item in planned}) == 6
    record_plan(planned)
    known = recorded_plan(load_sweep(path), tmp_path / "demo", is_checked=False, root=tmp_path)
    assert known is None if devices else [item.cell for item in known] == [item.cell for item in planned]
    monkeypatch.setattr("vitlight.training.resolve.Resolver", lambda: fake_fit.resolve)
    asked = ["--model.arch=ok_4", "--seed_everything=0"]
    assert add_command(argparse.Namespace(file=str(path), root=tmp_path, settings=asked)) == 0
    assert capsys.readouterr().out.startswith("added    8  ")
    again = plan_sweep(load_sweep(path), fake_fit.resolve, tmp_path)
    assert [item.cell.index for item in again] == [0, 1, 2, 3, 4, 5, 8]


def test_a_setting_that_makes_no_other_run_adds_no_cell(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr("vitlight.training.resolve.Resolver", lambda: fake_fit.resolve)
    asked = ["--model.arch=ok_2", "--seed_everything=1", "--trainer.devices=2"]
    with pytest.raises(InputError, match=r"^model.arch=ok_2 seed_everything=1 trainer.devices=2 is the same run"):
        add_command(argparse.Namespace(file=str(sweep.path), root=tmp_path, settings=asked))
    assert read_added(tmp_path / "demo") == ()


def test_a_torn_line_is_no_cell_and_is_cut_off_by_the_next(sweep, tmp_path):
    first, second = combinations(sweep, [("model.arch", "ok_3")])
    append_added(tmp_path, [first], 0)
    whole = (tmp_path / ADDED).read_bytes()
    (tmp_path / ADDED).write_bytes(whole + b'{"parameters": {"mod')
    assert read_added(tmp_path) == (first,)
    append_added(tmp_path, [second], 1)
    assert read_added(tmp_path) == (first, second)
    assert [json.loads(line) for line in (tmp_path / ADDED).read_text().splitlines()] == [
        {"parameters": first},
        {"parameters": second},
    ]


def test_two_who_add_at_once_do_not_add_unseen(sweep, tmp_path):
    cells = combinations(sweep, [("model.arch", "ok_3")])
    append_added(tmp_path, cells[:1], 0)
    with pytest.raises(InputError, match=r"somebody else has just added cells to .*; try again"):
        append_added(tmp_path, cells[1:], 0)
    (tmp_path / ADDED).write_text('{"parameters": 3}\n')
    with pytest.raises(InputError, match=r"added\.jsonl has a line that is no cell"):
        read_added(tmp_path)

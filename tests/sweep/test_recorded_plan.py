"""Plans that are read again: the same as a new one for as long as nothing has changed, and no longer."""

import json
import os
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import yaml

from tests.conftest import fit_args as fit_args_fixture
from vitlight.sweep import load_sweep, plan_sweep, recorded_plan
from vitlight.sweep.added import append_added
from vitlight.sweep.plan import RecordedRun
from vitlight.sweep.preflight import num_devices
from vitlight.sweep.rates import network_of
from vitlight.sweep.recorded_plan import likely_directory, record_plan


@pytest.fixture
def sweep_file(tiny_shards, tmp_path):
    """2 sizes x 2 seeds of the tiny runs, whose settings lie in two files of which one names the other's folder."""
    args = fit_args_fixture.__wrapped__(tiny_shards, tmp_path)
    own = {"run": {"root": str(tmp_path / "runs"), "num_evaluations": 3}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    fixed = [arg for arg in args if not arg.startswith(("--model.arch", "--run.name", "--run.root", "--run.num_eval"))]
    parameters = {"model.arch": {"values": ["vit_nano1", "vit_nano2"]}, "seed_everything": {"values": [0, 1]}}
    command = ["${env}", "vitlight", *fixed, f"--config={tmp_path / 'own.yaml'}", "${args}"]
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "method": "grid", "command": command, "parameters": parameters}))
    return path


@pytest.fixture
def planned(sweep_file, tmp_path):
    planned = plan_sweep(load_sweep(sweep_file))
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    record_plan(planned)
    return planned


def read(sweep_file, is_checked=True):
    sweep = load_sweep(sweep_file)
    return recorded_plan.recorded_plan(sweep, likely_directory(sweep, None), is_checked)


def test_what_is_read_is_what_was_planned(sweep_file, planned):
    again = read(sweep_file)
    assert [item.cell for item in again] == [item.cell for item in planned]
    assert [item.args for item in again] == [item.args for item in planned]
    assert [item.own_train_flops for item in again] == [item.own_train_flops for item in planned]
    names = {field.name for field in fields(RecordedRun)} - {"family", "settings"}
    for name in names:
        assert [getattr(item.run, name) for item in again] == [getattr(item.run, name) for item in planned]
    assert [network_of(item) for item in again] == [network_of(item) for item in planned]
    assert [num_devices(item) for item in again] == [num_devices(item) for item in planned]


def touch(path):
    times = path.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000_000))


def test_it_holds_until_something_changes_that_it_comes_from(sweep_file, planned, tmp_path, tiny_shards, monkeypatch):
    touch(sweep_file)
    touch(tmp_path / "own.yaml")  # the same settings
    assert read(sweep_file) is not None
    content = sweep_file.read_text()
    sweep_file.write_text(content.replace("vit_nano2", "vit_nano3"))
    assert read(sweep_file) is None
    assert read(sweep_file, is_checked=False) is None
    sweep_file.write_text(content)
    assert read(sweep_file) is not None
    shard = next((tiny_shards / "train").glob("*.tar"))
    before = shard.stat()
    touch(shard)
    assert read(sweep_file) is None
    assert read(sweep_file, is_checked=False) is not None
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(sweep_file) is not None
    with monkeypatch.context() as patch:
        patch.setattr(recorded_plan, "version", lambda name: "0")
        assert read(sweep_file) is None
    (tmp_path / "own.yaml").write_text((tmp_path / "own.yaml").read_text() + "seed_everything: 0\n")
    assert read(sweep_file) is None


def test_added_cells_are_other_cells(sweep_file, planned, tmp_path):
    parameters = planned[0].cell.parameters | {"seed_everything": 7}
    append_added(tmp_path / "runs" / "tiny", [parameters], 0)
    assert read(sweep_file) is None
    extended = plan_sweep(load_sweep(sweep_file))
    record_plan(extended)
    assert [item.run.run_id for item in read(sweep_file)] == [item.run.run_id for item in extended]
    assert len(extended) == 5


def test_a_torn_or_older_record_is_none(sweep_file, planned, tmp_path):
    path = tmp_path / "runs" / "tiny" / "plan.json"
    content = json.loads(path.read_text())
    for wrong in ("", "[]", json.dumps(content | {"format": 0}), json.dumps({**content, "cells": {}})):
        path.write_text(wrong)
        assert read(sweep_file, is_checked=False) is None


def test_a_directory_is_looked_for_where_the_settings_say(sweep_file, tmp_path):
    sweep = load_sweep(sweep_file)
    assert likely_directory(sweep, None) == tmp_path / "runs" / "tiny"
    assert likely_directory(sweep, tmp_path / "other") == tmp_path / "other" / "tiny"
    with_name = replace(sweep, parameters={"run.name": ("fine",), "run.root": ("r",), **sweep.parameters})
    assert str(likely_directory(with_name, tmp_path / "other")) == "r/fine"


def test_looking_imports_nothing_that_takes_seconds(sweep_file, planned, tmp_path):
    (tmp_path / "runs" / "tiny" / "sweep.yaml").write_bytes(sweep_file.read_bytes())
    code = (
        "import sys; from vitlight.cli import main\n"
        "assert main(['sweep', 'status', sys.argv[1], '--json']) == 0\n"
        "print(sorted({'torch', 'lightning', 'jsonargparse', 'pandas'} & set(sys.modules)))"
    )
    for place in (sweep_file, tmp_path / "runs" / "tiny"):
        words = [sys.executable, "-c", code, str(place)]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
        rows, end = done.stdout.rsplit("\n[", 1)
        assert end == "]\n"
        assert [row["run_id"] for row in json.loads(rows)] == [item.run.run_id for item in planned]

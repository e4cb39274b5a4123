"""The whole way, with nothing faked: real shards, a real sweep killed in the middle, the report in a real browser."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import fit_args
from vitlight.analysis import load_runs, write_report
from vitlight.cli import main


@pytest.fixture(scope="module")
def sweep_file(tiny_shards, tmp_path_factory) -> Path:
    """2 architectures x 2 data sets of the tiny runs."""
    folder = tmp_path_factory.mktemp("sweep")
    fixed = [
        arg for arg in fit_args.__wrapped__(tiny_shards, folder) if not arg.startswith(("--model.arch", "--run.name"))
    ]
    path = folder / "tiny.yaml"
    sweep = {
        "name": "tiny",
        "method": "grid",
        "program": "vitlight",
        "command": ["${env}", "vitlight", *fixed, "${args}"],
        "parameters": {
            "model.arch": {"values": ["vit_nano1", "resnet_nano1"]},
            "data.num_train_samples": {"values": [20, 80]},
        },
    }
    path.write_text(yaml.safe_dump(sweep))
    return path


def run_directories(sweep_file: Path) -> list[Path]:
    return sorted(path.parent for path in (sweep_file.parent / "runs" / "tiny").glob("*/experiment.yaml"))


def test_a_killed_sweep_goes_on_where_it_stopped(sweep_file):
    command = [sys.executable, "-m", "vitlight", "sweep", "run", str(sweep_file)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        done = [path for path in run_directories(sweep_file) if (path / "result.json").exists()]
        if done and len(run_directories(sweep_file)) > len(done):
            break  # one cell is finished, another one under way
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    finished = {path: (path / "result.json").stat().st_mtime_ns for path in done}
    assert 1 <= len(finished) < 4
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "4 of 4 cells done" in again.stdout
    assert finished == {path: (path / "result.json").stat().st_mtime_ns for path in finished}
    assert len(run_directories(sweep_file)) == 4
    runs = load_runs([sweep_file.parent / "runs" / "tiny"])
    assert sorted(zip(runs.arch, runs.num_train_samples, runs.status, strict=True)) == [
        ("resnet_nano1", 20, "done"),
        ("resnet_nano1", 80, "done"),
        ("vit_nano1", 20, "done"),
        ("vit_nano1", 80, "done"),
    ]
    assert set(runs.samples_seen) == {192}
    assert (runs.train_flops == 6 * runs.forward_macs * 192).all()


def test_the_finished_sweep_is_planned_shown_and_reported(sweep_file, capsys):
    assert main(["sweep", "status", str(sweep_file), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["state"] for row in rows} == {"done"}
    assert all(0 <= row["top1"] <= 1 for row in rows)
    assert main(["sweep", "plan", str(sweep_file), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert sorted(row["run_id"] for row in planned) == sorted(row["run_id"] for row in rows)
    assert main(["report", str(sweep_file.parent / "runs" / "tiny")]) == 0
    report = Path(capsys.readouterr().out.removeprefix("report: ").strip())
    assert report == sweep_file.parent / "runs" / "tiny" / "report" / "report.html"
    assert "vit_nano1" in report.read_text()
    assert (report.parent / "runs.csv").read_text().count("\n") == 5


def test_the_report_of_a_real_sweep_draws_in_a_browser(sweep_file, browser, tmp_path):
    report = write_report([sweep_file.parent / "runs" / "tiny"], tmp_path / "report")
    browser.open(report)
    assert browser.per_chart(".point") == [4] * 4
    assert browser.per_chart('.point[data-family="vit"]') == [2] * 4
    browser.keep_screenshot("report_real_sweep.png", tmp_path)
    browser.assert_quiet(report)


def test_an_impossible_cell_is_named_before_anything_runs(sweep_file, tmp_path, capsys):
    sweep = yaml.safe_load(sweep_file.read_text())
    sweep["name"] = "impossible"
    sweep["parameters"]["data.num_train_samples"]["values"] = [20, 100_000]
    path = tmp_path / "impossible.yaml"
    path.write_text(yaml.safe_dump(sweep))
    assert main(["sweep", "run", str(path)]) == 2
    error = capsys.readouterr().err
    assert "data.num_train_samples=100000 asks for 100000 images" in error
    assert not (sweep_file.parent / "runs" / "impossible").exists()

"""Real runs from a process that has imported everything: the same results, rows and threads as separate processes have."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from vitlight.sweep.executors import LocalExecutor
from vitlight.sweep.warm import WarmExecutor
from vitlight.training.record import RunDirectory

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 120.0


def run(executor, args, folder, slot=0):
    """Run a cell to its end; returns its exit code."""
    claim = os.open(folder / "claim", os.O_RDWR | os.O_CREAT)
    job = executor.start(args, slot, folder / "log", claim)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (code := job.poll()) is None:
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.02)
    os.close(claim)
    return code


def record(root):
    """Rows and result without times, and the weights, of the one run beneath a root."""
    (path,) = root.glob("tiny/*/result.json")
    run = RunDirectory(path.parent)
    rows = [
        {name: value for name, value in row.items() if not name.startswith(("time/", "perf/"))} for row in run.rows()
    ]
    (last,) = run.checkpoints.glob("step-*12.ckpt")
    names = ("run_id", "status", "top1_count", "loss", "val_loss", "samples_seen", "plan_digest", "num_ranks")
    return rows, {name: run.read_result()[name] for name in names}, torch.load(last, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def warm():
    with WarmExecutor() as executor:
        yield executor


def test_a_warm_run_is_bit_for_bit_that_of_a_separate_process(warm, fit_args, tmp_path):
    found = {}
    for name, executor in (("warm", warm), ("again", warm), ("separate", LocalExecutor())):
        (tmp_path / name).mkdir()
        args = [*fit_args, f"--run.root={tmp_path / name}", "--model.model_options={dropout_rate: 0.1}"]
        assert run(executor, args, tmp_path / name) == 0, (tmp_path / name / "log").read_text()
        found[name] = record(tmp_path / name)
    rows, result, weights = found.pop("warm")
    assert result["status"] == "done"
    for its_rows, its_result, its_weights in found.values():
        assert (its_rows, its_result) == (rows, result)
        assert its_weights.keys() == weights.keys()
        assert all(torch.equal(its_weights[name], weights[name]) for name in weights)


def test_a_warm_run_starts_other_ranks_and_loader_workers_and_has_wandbs_process(warm, fit_args, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.num_workers=1", "--run.wandb=true"]
    assert run(warm, [*fit_args, *settings, f"--run.root={tmp_path}"], tmp_path) == 0, (tmp_path / "log").read_text()
    (told,) = tmp_path.glob("tiny/*/wandb/projection.log")
    assert told.read_text() == ""
    (shown,) = tmp_path.glob("tiny/*/wandb/offline-run-*/run-*.wandb")
    assert shown.stat().st_size > 1000
    assert "W&B lacks rows" not in (tmp_path / "log").read_text()
    _, result, _ = record(tmp_path)
    assert (result["num_ranks"], result["samples_seen"], result["status"]) == (2, 192, "done")


def test_what_is_preloaded_leaves_nothing_behind_that_a_fork_would_break(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    code = """
import json, os, random, sys
late = {"vitlight.training.run", "torch", "lightning.pytorch", "wandb"} - set(sys.modules)
import numpy, torch
print(json.dumps({
    "late": sorted(late),
    "threads": len(os.listdir("/proc/self/task")),
    "cuda": [torch.cuda.is_initialized(), torch.cuda._is_in_bad_fork(), sys.modules["tests.sweep.cell"].ASKED],
    "torch threads": torch.get_num_threads(),
    "random": [random.random(), numpy.random.random(), torch.initial_seed()],
}))
"""
    monkeypatch.setenv("PRELOAD_RUNS", "1")
    monkeypatch.delenv("OMP_NUM_THREADS")
    found = []
    with WarmExecutor(1, "tests.sweep.cell", "tests.sweep.cell") as executor:
        for number, threads in enumerate((None, 3, None)):
            folder = tmp_path / str(number)
            folder.mkdir()
            if threads is None:
                monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
            else:
                monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
            assert run(executor, [code], folder) == 0, (folder / "log").read_text()
            found.append(json.loads((folder / "log").read_text().splitlines()[-1]))
    for one in found:
        assert (one["late"], one["cuda"]) == ([], [False, False, []])
    assert [len(set(numbers)) for numbers in zip(*(one["random"] for one in found), strict=True)] == [3, 3, 3]
    assert (found[0]["threads"], found[2]["threads"]) == (1, 1)
    default = found[0]["torch threads"]
    assert [one["torch threads"] for one in found] == [default, 3, default]
    assert 1 <= default <= len(os.sched_getaffinity(0))
    assert sys.modules["torch"].get_num_threads() == 1  # of the tests' own process

"""Kills at random moments: the short form of benchmarks/random_kills.py, and that its comparison sees what it must."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.training.test_run import fit_args_for
from vitlight.cli import main
from vitlight.training.checkpoint import newest_checkpoint
from vitlight.training.resolve import resolve_run


@pytest.mark.parametrize("case", [0, 4], ids=["the same world", "changing ranks, workers, accumulation"])
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path, case):
    command = [sys.executable, ROOT / "benchmarks" / "random_kills.py", "--kills=3", "--kills-per-run=3"]
    command += [f"--cases={case}", f"--work={tmp_path / 'work'}", f"--json={tmp_path / 'report.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert run["differences"] == []
    kills = [one for one in run["outcomes"] if one["fell"] is not None]
    assert sorted(one["kill"]["signal"] for one in kills) == [9, 10, 15]  # SIGKILL, SIGUSR1, SIGTERM
    assert run["outcomes"][-1]["codes"] in ([0], [0, 0])
    assert len(set(run["worlds"])) == 1 if case == 0 else len(set(run["worlds"])) > 1


@pytest.fixture(scope="module")
def whole(tiny_shards, tmp_path_factory):
    """The directory of a finished run."""
    args = fit_args_for(tiny_shards, tmp_path_factory.mktemp("whole"))
    assert main(args) == 0
    return resolve_run(args).run_dir


@pytest.fixture
def differences(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import kill_differences

    return kill_differences.differences


@pytest.fixture
def other(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "other")


def test_a_copy_of_a_run_does_not_differ(whole, other, tmp_path, differences):
    assert differences(whole, other, tmp_path, tmp_path, same_world=True) == []


@pytest.mark.parametrize("same_world", [True, False])
def test_a_weight_that_differs_is_seen(whole, other, tmp_path, differences, same_world, monkeypatch):
    _, path = newest_checkpoint(other / "checkpoints")
    state = torch.load(path, weights_only=True)
    name = next(name for name, value in state["state_dict"].items() if value.ndim == 2)
    state["state_dict"][name] *= 1.5
    torch.save(state, path)
    # Whole for the reader: what is compared here is the content.
    monkeypatch.setattr("vitlight.training.checkpoint.newest_checkpoint", lambda folder: _newest(folder))
    (line,) = differences(whole, other, tmp_path, tmp_path, same_world)
    assert (f"state/state_dict/{name} differs" if same_world else "weights: |difference| / |weights| = ") in line


def _newest(folder):
    return 12, max(folder.glob("step-*.ckpt"))


def test_a_row_that_differs_is_seen_and_its_times_are_not(whole, other, tmp_path, differences):
    path = other / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["time/wall_seconds"] += 5.0
    rows[0]["train/loss"] += 1e-9
    rows[1]["data/samples_seen"] += 1
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = differences(whole, other, tmp_path, tmp_path, same_world=True)
    assert [line.partition(": ")[2].partition(" is ")[0] for line in lines] == ["train/loss", "data/samples_seen"]
    (line,) = differences(whole, other, tmp_path, tmp_path, same_world=False)
    assert "data/samples_seen is 33, not 32" in line or "data/samples_seen" in line


def test_the_ledger_is_that_of_the_last_attempt_at_a_step_and_earlier_ones_must_agree(
    whole, other, tmp_path, differences
):
    def write(name, *steps):
        folder = tmp_path / name
        folder.mkdir()
        for attempt, step, digests in steps:
            line = {"attempt": attempt, "rank": 0, "phase": "train", "step": step, "digests": digests}
            with (folder / f"ledger-{attempt:03d}-0.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        return folder

    undisturbed = write("undisturbed", (0, 1, ["a", "b"]), (0, 2, ["c", "d"]))
    repeated = write("repeated", (0, 1, ["b", "a"]), (0, 2, ["c"]), (1, 2, ["d", "c"]))
    missed = write("missed", (0, 1, ["a", "b"]), (1, 2, ["c"]))
    changed = write("changed", (0, 1, ["a", "x"]), (1, 1, ["a", "b"]), (1, 2, ["c", "d"]))
    assert differences(whole, other, undisturbed, repeated, same_world=True) == []
    assert differences(whole, other, undisturbed, missed, same_world=True) == [
        "ledger of step 2: 1 images, not the same 2"
    ]
    assert differences(whole, other, undisturbed, changed, same_world=True) == ["attempt 0, step 1: other images"]

"""Checkpoints of real runs: what may be read back and by whom, full disks, and kills while one is written."""

import importlib
import json
import os
import resource
import shutil

import pytest
import torch

from tests.conftest import ROOT
from tests.training.test_run import assert_bit_equal, final_state, fit_args_for, rows_without_times
from vitlight.cli import main
from vitlight.models import build_model
from vitlight.models.weights import load_weights
from vitlight.training.checkpoint import best_step, checkpoint_path, newest_checkpoint
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run

SMALL = [
    "--model.model_options={depth: 1, width: 16, mlp_dim: 32, num_heads: 2}",
    "--run.keep_best=true",
    "--run.milestone_samples=[40]",
]


def load_benchmark(monkeypatch):
    """The full form of the last test, which this one runs in short."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("kill_while_saving")


@pytest.fixture(scope="module")
def finished(tiny_shards, tmp_path_factory):
    """A finished run, written in the background: its arguments and its directory."""
    args = [*fit_args_for(tiny_shards, tmp_path_factory.mktemp("finished")), *SMALL]
    assert main(args) == 0
    return args, RunDirectory(resolve_run(args).run_dir)


def test_saving_in_the_background_changes_nothing(finished, tiny_shards, tmp_path):
    _, whole = finished
    args = [*fit_args_for(tiny_shards, tmp_path), *SMALL, "--run.checkpoint_async=false"]
    assert main(args) == 0
    run = RunDirectory(resolve_run(args).run_dir)
    assert run.path.name == whole.path.name
    assert rows_without_times(run) == rows_without_times(whole)
    names = sorted(path.name for path in whole.checkpoints.iterdir())
    assert sorted(path.name for path in run.checkpoints.iterdir()) == names
    assert checkpoint_path(run.checkpoints, 3).exists()  # 48 images: the first step past 40
    left, right = final_state(run), final_state(whole)
    for key in ("state_dict", "optimizer_states", "global_step", "vitlight"):
        assert_bit_equal(left[key], right[key], key)


def test_the_best_has_the_accuracy_of_its_row_and_can_be_evaluated_and_loaded(finished, capfd):
    _, run = finished
    rows = [row for row in run.rows() if row["event"] == "val"]
    best = max(rows, key=lambda row: (row["val/top1"], -row["step"]))
    assert best_step(run.checkpoints) == best["step"]
    path = run.checkpoints / "best.ckpt"
    assert json.loads(path.with_suffix(".json").read_text())["val/top1"] == best["val/top1"]
    assert main(["validate", f"--ckpt_path={path}"]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["top1_count"] == best["val/top1_count"]
    options = {"depth": 1, "width": 16, "mlp_dim": 32, "num_heads": 2}
    model = build_model("vit_nano1", num_classes=4, image_size=28, in_channels=3, **options)
    load_weights(model, path, layout="vitlight")
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(not name.startswith(("model._orig_mod.", "module.")) for name in state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[f"model.{name}"])


def test_the_rows_that_a_checkpoint_remembers_are_on_the_disk_before_it_has_its_name(finished, monkeypatch, tmp_path):
    """Of each save: the length of the record that was flushed last before the checkpoint was renamed."""
    args = [*finished[0], f"--run.root={tmp_path}"]
    run = RunDirectory(resolve_run(args).run_dir)
    flushed, renamed = [0], {}
    fsync, replace = os.fsync, type(tmp_path).replace

    def note_fsync(descriptor):
        fsync(descriptor)
        if run.metrics_path.exists() and os.path.samestat(os.fstat(descriptor), run.metrics_path.stat()):
            flushed.append(os.fstat(descriptor).st_size)

    def note_replace(path, target):
        if str(target).endswith(".ckpt"):
            renamed[target] = flushed[-1]
        return replace(path, target)

    monkeypatch.setattr("os.fsync", note_fsync)
    monkeypatch.setattr(type(tmp_path), "replace", note_replace)
    assert main(args) == 0
    kept = list(run.checkpoints.glob("step-*.ckpt"))
    assert len(kept) == 3
    for path in kept:
        remembered = torch.load(path, weights_only=True)["callbacks"]["Record"]["metrics_length"]
        assert 0 < remembered <= renamed[path]


def test_a_checkpoint_of_another_horizon_is_refused(finished, tiny_shards, tmp_path, capsys):
    _, whole = finished
    args = [*fit_args_for(tiny_shards, tmp_path), *SMALL, "--model.duration.samples=176"]
    run = RunDirectory(resolve_run(args).run_dir)
    run.create()
    for path in whole.checkpoints.glob("step-000000003.*"):
        shutil.copyfile(path, run.checkpoints / path.name)
    assert main(args) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(
        "vitlight: error: the checkpoint at step 3 is of a run of 192 samples seen, not 176: its model.duration differs"
    )


def test_a_disk_that_is_full_for_a_while_loses_nothing(finished, monkeypatch, capsys, tmp_path):
    """And one that is full at the end fails the run in one line; with room again, the same command finishes it."""
    whole_args, whole = finished
    args = [*whole_args, f"--run.root={tmp_path}"]
    run = RunDirectory(resolve_run(args).run_dir)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    full_at = {5, 12}
    save = torch.save

    def save_on_a_small_disk(state, file):
        if state["global_step"] in full_at:  # as on a full disk, the kernel writes a part and refuses the rest
            resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, limits[1]))
        try:
            save(state, file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr("torch.save", save_on_a_small_disk)
    assert main([*args, "--run.checkpoint_async=false"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "could not be saved: File too large" in line]
    assert [line.split()[0:2] for line in lines] == [["vitlight:", "checkpoint"]] * 2 + [["vitlight:", "error:"]]
    assert newest_checkpoint(run.checkpoints)[0] == 10
    assert run.read_result()["status"] == "failed"
    full_at.clear()
    assert main(args) == 0
    assert "resumes at step 10 of 12" in capsys.readouterr().err
    assert rows_without_times(run) == rows_without_times(whole)
    assert_bit_equal(final_state(run)["state_dict"], final_state(whole)["state_dict"])


@pytest.mark.parametrize("way", ["in the background", "in place"])
def test_a_whole_checkpoint_is_found_after_every_kill_while_one_is_written(way, tiny_shards, tmp_path, monkeypatch):
    benchmark = load_benchmark(monkeypatch)
    kills = benchmark.kill_runs(tiny_shards, tmp_path, way, num_kills=8, seed=0, padding_mib=8)
    assert [kill.fault for kill in kills] == [None] * 8
    assert sum(kill.fell != "between saves" for kill in kills) >= 4  # the aim is right

"""Whole runs of a tiny model on tiny shards: exact, resumable, equal on every world."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, tiny_sample
from vitlight.cli import main
from vitlight.data.shards import Sample, write_shards
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run


def run_cli(args: list[str], check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitlight", *args]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=300)
    assert not check or done.returncode == 0, done.stderr
    return done


def rows_without_times(run: RunDirectory) -> list[dict]:
    return [
        {name: value for name, value in row.items() if not name.startswith(("time/", "perf/"))} for row in run.rows()
    ]


def final_state(run: RunDirectory) -> dict:
    newest = max(run.checkpoints.glob("*.ckpt"))
    return torch.load(newest, weights_only=True)


def assert_bit_equal(left, right, path=""):
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_bit_equal(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), path
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_bit_equal(a, b, f"{path}/{i}")
    else:
        assert left == right, path


@pytest.fixture(scope="module")
def finished(tiny_shards, tmp_path_factory):
    """One finished run: its arguments and its directory."""
    root = tmp_path_factory.mktemp("finished")
    args = fit_args_for(tiny_shards, root)
    assert main(args) == 0
    return args, RunDirectory(resolve_run(args).run_dir)


def fit_args_for(tiny_shards: Path, root: Path) -> list[str]:
    import tests.conftest as conftest

    return conftest.fit_args.__wrapped__(tiny_shards, root)  # the fixture's function, for another scope


def test_a_finished_run_leaves_the_whole_record(finished):
    args, run = finished
    resolved, result = resolve_run(args), run.read_result()
    assert result["status"] == "done"
    assert result["samples_seen"] == 192 == resolved.horizon_samples
    assert result["unique_samples_seen"] == 160
    assert result["epochs"] == 1.2
    assert result["train_flops"] == resolved.train_flops
    assert result["params"] == resolved.params
    assert result["forward_macs"] == resolved.forward_macs
    assert (result["eval_split"], result["num_eval_samples"]) == ("test", 61)
    assert result["top1"] == result["top1_count"] / 61
    assert result["family"] == "vit"
    assert result["versions"]["torch"] == torch.__version__
    rows = run.rows()
    assert [row["step"] for row in rows if row["event"] == "train"] == [2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in rows if row["event"] == "val"] == [4, 8, 12]
    assert [row["step"] for row in rows if row["event"] == "test"] == [12]
    for row in rows:
        assert row["data/samples_seen"] == 16 * row["step"]
        assert row["data/unique_samples_seen"] == min(160, 16 * row["step"])
        assert row["compute/train_flops"] == 6 * resolved.forward_macs * 16 * row["step"]
        assert row["data/epochs"] == 16 * row["step"] / 160
        assert row["time/wall_seconds"] >= row["time/device_seconds"] > 0
    val = [row for row in rows if row["event"] == "val"][-1]
    assert (result["val_top1"], result["val_loss"]) == (val["val/top1"], val["val/loss"])
    assert val["val/num_images"] == 40
    assert sorted(path.name for path in run.path.iterdir() if not path.name.startswith(".")) == [
        "checkpoints",
        "experiment.yaml",
        "metrics.jsonl",
        "result.json",
    ]


def test_the_learning_rate_in_the_record_is_the_schedule(finished):
    _, run = finished
    rates = [row["train/learning_rate"] for row in run.rows() if row["event"] == "train"]
    assert rates[0] > rates[1] > rates[-1] > 0  # warm-up is a tenth of 12 steps
    assert max(rates) <= 1.0e-3


def test_the_same_command_again_does_nothing(finished, capsys):
    args, run = finished
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    assert main(args) == 0
    assert "done already, nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}


def test_kill_and_resume_is_bit_identical(finished, tiny_shards, tmp_path):
    _, whole = finished
    args = fit_args_for(tiny_shards, tmp_path)
    run = RunDirectory(resolve_run(args).run_dir)
    assert run.path.name == whole.path.name
    for rows_at_kill in (2, 5, 8):
        process = subprocess.Popen([sys.executable, "-m", "vitlight", *args], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(run.rows()) >= rows_at_kill:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.wait(60)
    run_cli(args)
    assert rows_without_times(run) == rows_without_times(whole)
    left, right = final_state(run), final_state(whole)
    for key in ("state_dict", "optimizer_states", "global_step", "vitlight"):
        assert_bit_equal(left[key], right[key], key)
    drop = (
        "wall",
        "device",
        "own_device",
        "images_per",
        "perf",
        "verdict",
        "started",
        "finished",
        "versions",
        "commit",
    )
    results = [{k: v for k, v in r.read_result().items() if not k.startswith(drop)} for r in (run, whole)]
    assert results[0] == results[1]


def test_a_run_killed_before_its_last_evaluations_makes_them_once(finished, tiny_shards, tmp_path, capsys):
    _, whole = finished
    args = fit_args_for(tiny_shards, tmp_path)
    assert main(args) == 0
    run = RunDirectory(resolve_run(args).run_dir)
    expected = rows_without_times(whole)
    run.result_path.unlink()
    assert main(args) == 0
    assert rows_without_times(run) == expected
    lines = run.metrics_path.read_text().splitlines(keepends=True)
    run.metrics_path.write_text("".join(lines[:-1]))  # killed between `val` and `test`
    run.result_path.unlink()
    assert main(args) == 0
    assert rows_without_times(run) == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize(
    "change",
    [
        ["--data.eval_batch_size=1"],
        ["--data.eval_batch_size=7", "--data.num_workers=1"],
        ["--data.eval_batch_size=64", "--data.num_workers=2"],
        ["--data.eval_batch_size=7", "--data.num_workers=3"],
        ["--data.eval_batch_size=7", "--trainer.devices=2", "--trainer.strategy=ddp"],
        ["--data.eval_batch_size=64", "--trainer.devices=2", "--trainer.strategy=ddp"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("command", ["validate", "test"])
def test_counts_are_equal_for_batch_sizes_workers_and_ranks(finished, change, command, capfd):
    _, run = finished
    args = [command, f"--ckpt_path={max(run.checkpoints.glob('*.ckpt'))}", *change]
    if "--trainer.devices=2" in change:
        text = run_cli(args).stdout
    else:
        assert main(args) == 0
        text = capfd.readouterr().out
    printed = json.loads(text.splitlines()[-1])
    row = [row for row in run.rows() if row["event"] == ("val" if command == "validate" else "test")][-1]
    split = row["event"]
    assert printed["top1_count"] == row[f"{split}/top1_count"]
    assert printed["num_images"] == row[f"{split}/num_images"]
    assert printed["top5"] == row[f"{split}/top5"]
    assert printed["loss"] == pytest.approx(row[f"{split}/loss"], rel=1e-6)


def test_no_process_group_outlives_a_command(finished):
    """Threads of gloo would abort the interpreter at its end, after everything went well: seen once in some 20 runs."""
    checkpoint = max(finished[1].checkpoints.glob("*.ckpt"))
    args = ["test", f"--ckpt_path={checkpoint}", "--trainer.devices=1", "--trainer.strategy=ddp"]
    script = f"""
import torch.distributed as dist
from vitlight.cli import main
seen = []
start = dist.init_process_group
dist.init_process_group = lambda *args, **kwargs: seen.append(args) or start(*args, **kwargs)
assert main({args}) == 0
assert len(seen) == 1, seen
assert not dist.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_accumulation_and_ranks_give_the_same_training(finished, tiny_shards, tmp_path):
    """A ViT has no batch statistics, so the global batch is all that counts: 1x16, 4x4 and 2 ranks x 2 x 4 agree."""
    _, whole = finished
    losses = [row["train/loss"] for row in whole.rows() if row["event"] == "train"]
    for name, change in {
        "accumulated": ["--trainer.accumulate_grad_batches=4"],
        "ranks": ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accumulate_grad_batches=2"],
    }.items():
        args = [*fit_args_for(tiny_shards, tmp_path / name), *change]
        run_cli(args)
        run = RunDirectory(resolve_run(args).run_dir)
        assert run.path.name == whole.path.name  # the same result, by its name
        assert [row["train/loss"] for row in run.rows() if row["event"] == "train"] == pytest.approx(losses, rel=2e-4)
        assert run.read_result()["num_ranks"] == (2 if name == "ranks" else 1)
        assert len(list(run.path.parent.iterdir())) == 1


def test_resume_on_other_ranks_continues_the_same_stream(finished, tiny_shards, tmp_path):
    _, whole = finished
    args = fit_args_for(tiny_shards, tmp_path)
    run = RunDirectory(resolve_run(args).run_dir)
    assert main(args) == 0
    newest = max(run.checkpoints.glob("*.ckpt"))
    newest.unlink()  # back to step 10
    run.result_path.unlink()
    done = run_cli([*args, "--trainer.devices=2", "--trainer.strategy=ddp"])
    assert "resumes at step 10 of 12" in done.stderr
    expected, rows = rows_without_times(whole), rows_without_times(run)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        if row["event"] == "train":
            assert row["train/loss"] == pytest.approx(other["train/loss"], rel=2e-4)


def test_a_diverged_run_says_so_and_has_no_accuracy(fit_args, capsys):
    args = [*fit_args, "--model.optimizer.lr=1.0e+30", "--trainer.gradient_clip_val=null"]
    assert main(args) == 3
    result = RunDirectory(resolve_run(args).run_dir).read_result()
    assert result["status"] == "diverged"
    assert result["top1"] is None
    assert result["reason"] == "the training loss is not finite at step 2"
    assert result["last_good_checkpoint"] is None
    assert "diverged" in capsys.readouterr().err
    assert main(args) == 3  # and is not run again


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_stops_the_run_with_shard_and_key(fit_args, tmp_path, capsys, workers):
    good = tiny_sample(4, "train")
    # Whole at both ends, so indexing can't see it; what lies between is damaged.
    damaged = good.image[:100] + bytes(40) + good.image[140:]
    write_shards([good, Sample("folder/damaged", damaged, good.extension, 1)], tmp_path / "bad")
    args = [*fit_args, f"--data.train={tmp_path / 'bad'}", "--data.val_fraction=0", f"--data.num_workers={workers}"]
    assert main(args) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "image 'folder/damaged' in shard" in error
    assert "shard-000000.tar can't be decoded" in error
    result = RunDirectory(resolve_run(args).run_dir).read_result()
    assert result["status"] == "failed"
    assert "folder/damaged" in result["reason"]


def test_a_global_batch_that_ranks_do_not_divide_is_refused_before_training(fit_args, capsys):
    args = [*fit_args, "--trainer.accumulate_grad_batches=3"]
    assert main(args) == 2
    assert "data.global_batch_size=16 is not a multiple of 3" in capsys.readouterr().err
    assert RunDirectory(resolve_run(args).run_dir).rows() == []


def test_what_lightning_refuses_is_one_line(fit_args, capsys):
    assert main([*fit_args, "--trainer.strategy=bogus"]) == 2
    assert "vitlight: error: trainer: You selected an invalid strategy name" in capsys.readouterr().err


def test_an_offline_wandb_run_holds_the_summary(fit_args, tmp_path):
    args = [*fit_args, "--run.wandb=true"]
    env = {"WANDB_MODE": "", "WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | env
    clean.pop("WANDB_MODE"), clean.pop("WANDB_API_KEY")
    command = [sys.executable, "-m", "vitlight", *args]
    done = subprocess.run(command, capture_output=True, text=True, env=clean, timeout=300)
    assert done.returncode == 0, done.stderr
    run = RunDirectory(resolve_run(args).run_dir)
    (offline,) = (run.path / "wandb").glob("offline-run-*/*.wandb")
    leet = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", "--summary", str(offline)]
    printed = subprocess.run(leet, capture_output=True, text=True, env=clean, timeout=120)
    assert printed.returncode == 0, printed.stderr
    result = run.read_result()
    for name in ("params", "forward_macs", "train_flops", "top1"):
        assert str(result[name])[:12] in printed.stdout, name


def test_no_rank_imports_wandb_and_there_is_one_run_of_it(finished, tiny_shards, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, sys\n"
        "path = os.environ['PROBE'] + os.environ.get('LOCAL_RANK', '0')\n"
        "atexit.register(lambda: open(path, 'w').write(str('wandb' in sys.modules)))\n"
    )
    args = fit_args_for(tiny_shards, tmp_path)
    args = [*args, "--trainer.devices=2", "--trainer.strategy=ddp", "--run.wandb=true"]
    run_cli(args, WANDB_MODE="offline", PYTHONPATH=f"{tmp_path}:{ROOT}", PROBE=str(tmp_path / "rank"))
    assert (tmp_path / "rank0").read_text() == "False"  # its process beside it does
    assert (tmp_path / "rank1").read_text() == "False"
    run = RunDirectory(resolve_run(args).run_dir)
    assert len(list((run.path / "wandb").glob("offline-run-*/*.wandb"))) == 1

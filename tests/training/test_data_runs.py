"""Whole runs on data that is not plain: odd shards, damage, several labels, mixtures, mixing."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import webdataset

from tests.conftest import tiny_sample
from tests.training.test_run import assert_bit_equal, final_state, fit_args_for, rows_without_times, run_cli
from vitlight.cli import main
from vitlight.data.shards import Sample, write_shards
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run

TWO_RANKS = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def run_of(args: list[str]) -> RunDirectory:
    return RunDirectory(resolve_run(args).run_dir)


def train_losses(run: RunDirectory) -> list[float]:
    return [row["train/loss"] for row in run.rows() if row["event"] == "train"]


def samples(count: int) -> list[Sample]:
    return [tiny_sample(i, "train") for i in range(count)]


def write_tars(folder, sizes) -> str:
    """Shards of these sizes, written by webdataset itself."""
    folder.mkdir()
    rest = iter(samples(sum(sizes)))
    for number, size in enumerate(sizes):
        with webdataset.TarWriter(str(folder / f"{number}.tar"), encoder=False) as writer:
            for sample in (next(rest) for _ in range(size)):
                label = str(sample.label).encode()
                writer.write({"__key__": sample.key, sample.extension: sample.image, "cls": label})
    return str(folder)


@pytest.mark.parametrize("sizes", [(1, 7, 23), (31,)], ids=["three uneven shards", "fewer shards than ranks"])
def test_two_ranks_finish_on_any_shards(tiny_shards, tmp_path, sizes):
    train = write_tars(tmp_path / "train", sizes)
    losses = {}
    for name, change in {"one": [], "two": TWO_RANKS}.items():
        args = [*fit_args_for(tiny_shards, tmp_path / name), f"--data.train={train}", "--data.num_workers=1", *change]
        run_cli(args)
        run = run_of(args)
        result = run.read_result()
        assert (result["status"], result["samples_seen"]) == ("done", 192)
        assert result["unique_samples_seen"] == 25  # 31 less a fifth for val
        assert result["num_eval_samples"] == 61
        losses[name] = train_losses(run)
    assert losses["two"] == pytest.approx(losses["one"], rel=2e-4)


@pytest.fixture
def damaged(tmp_path):
    """40 images, 3 of them damaged between sound ends, so that only decoding finds them."""
    images = samples(40)
    for i in (4, 7, 22):  # PNGs
        assert images[i].extension == "png"
        image = images[i].image
        images[i] = Sample(images[i].key, image[:100] + bytes(len(image) - 200) + image[-100:], "png", images[i].label)
    write_shards(images, tmp_path / "damaged", samples_per_shard=9)
    return tmp_path / "damaged"


def test_an_allowance_lets_damaged_images_out_and_counts_them(tiny_shards, damaged, tmp_path, capfd):
    base = [f"--data.train={damaged}", "--data.val_fraction=0", "--data.num_workers=1"]
    args = [*fit_args_for(tiny_shards, tmp_path), *base, "--data.max_skipped_samples=3"]
    assert main(args) == 0
    run = run_of(args)
    # 192 draws are 4 epochs of 40 and 32 more: each damaged image comes 4 or 5 times.
    result, rows = run.read_result(), run.rows()
    assert 12 <= result["skipped_samples"] <= 15
    assert result["samples_seen"] == 192
    counts = [row["data/skipped_samples"] for row in rows]
    assert counts == sorted(counts)
    assert counts[-1] == result["skipped_samples"]
    faults = {row["fault"].split("'")[1] for row in map(json.loads, run.skipped_path.read_text().splitlines())}
    assert faults == {"train/00004", "train/00007", "train/00022"}
    # Resumed, and on two ranks: the same draws are skipped in the same steps.
    for name, change in {"resumed": [], "two": TWO_RANKS}.items():
        again = [*fit_args_for(tiny_shards, tmp_path / name), *base, "--data.max_skipped_samples=3", *change]
        if name == "resumed":
            assert main([*again]) == 0
            other = run_of(again)
            max(other.checkpoints.glob("*.ckpt")).unlink()
            other.result_path.unlink()
        run_cli(again)
        other = run_of(again)
        assert other.read_result()["skipped_samples"] == result["skipped_samples"]
        assert [row["data/skipped_samples"] for row in other.rows()] == counts
        assert sorted(other.skipped_path.read_text().splitlines()) == sorted(run.skipped_path.read_text().splitlines())
    capfd.readouterr()


def test_one_more_than_the_allowance_stops_the_run(tiny_shards, damaged, tmp_path, capsys):
    args = [*fit_args_for(tiny_shards, tmp_path), f"--data.train={damaged}", "--data.val_fraction=0"]
    args.append("--data.max_skipped_samples=2")
    assert main(args) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "with it 3 images had to be skipped, and data.max_skipped_samples=2" in error
    assert "in shard " in error
    assert run_of(args).read_result()["status"] == "failed"
    # A larger allowance goes on where the run stopped: it is no part of what defines the result.
    assert main([*args[:-1], "--data.max_skipped_samples=3"]) == 0
    assert run_of(args).read_result()["status"] == "done"


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_mixing_is_the_same_on_any_ranks_and_accumulation(tiny_shards, tmp_path, per):
    mixing = [f"--data.mixing.per={per}", "--data.mixing.mixup_alpha=0.8", "--data.mixing.cutmix_alpha=1.0"]
    losses = {}
    for name, change in {
        "whole": [],
        "accumulated": ["--trainer.accumulate_grad_batches=4"],
        "ranks": [*TWO_RANKS, "--trainer.accumulate_grad_batches=2"],
    }.items():
        args = [*fit_args_for(tiny_shards, tmp_path / name), *mixing, *change]
        run_cli(args)
        losses[name] = train_losses(run_of(args))
    plain = fit_args_for(tiny_shards, tmp_path / "plain")
    assert main(plain) == 0
    assert train_losses(run_of(plain)) != pytest.approx(losses["whole"], rel=1e-3)
    assert losses["accumulated"] == pytest.approx(losses["whole"], rel=2e-4)
    assert losses["ranks"] == pytest.approx(losses["whole"], rel=2e-4)


def test_a_mixture_with_repeats_and_policies_resumes_bit_by_bit(tiny_shards, tmp_path):
    train = json.dumps({str(tiny_shards / "train"): 0.75, str(tiny_shards / "test"): 0.25})
    change = [f"--data.train={train}", "--data.num_repeats=2", "--data.augmentation.policy=trivialaugment"]
    change += ["--data.augmentation.erase_probability=0.25", "--data.mixing.mixup_alpha=0.2", "--data.num_workers=1"]
    whole, cut = ([*fit_args_for(tiny_shards, tmp_path / name), *change] for name in ("whole", "cut"))
    for args in (whole, cut):
        assert main(args) == 0
    run = run_of(cut)
    max(run.checkpoints.glob("*.ckpt")).unlink()  # back to step 10
    run.result_path.unlink()
    run_cli(cut)
    assert rows_without_times(run) == rows_without_times(run_of(whole))
    assert_bit_equal(final_state(run)["state_dict"], final_state(run_of(whole))["state_dict"])
    assert run.read_result()["unique_samples_seen"] == 96  # 192 draws of 96 images


def test_several_labels_train_and_are_evaluated_alike_on_two_ranks(tiny_shards, tmp_path):
    folder = tmp_path / "multi"
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "0.tar"), encoder=False) as writer:
        for i, sample in enumerate(samples(60)):
            labels = [sample.label] if i % 2 else [sample.label, (sample.label + 1) % 4]
            described = json.dumps({"classes": labels}).encode()
            writer.write({"__key__": sample.key, sample.extension: sample.image, "json": described})
    results = []
    for name, change in {"one": [], "two": TWO_RANKS}.items():
        args = [
            *fit_args_for(tiny_shards, tmp_path / name),
            f"--data.train={folder}",
            "--data.test=null",
            "--data.labels.multi=true",
            "--data.labels.field=classes",
            "--model.loss=sigmoid",
            *change,
        ]
        run_cli(args)
        run = run_of(args)
        results.append([row["val/top1_count"] for row in run.rows() if row["event"] == "val"])
        losses = train_losses(run)
        assert losses[0] == pytest.approx(4 * torch.log(torch.tensor(2.0)).item(), rel=0.05)  # four classes at p = 1/2
        assert losses[-1] < losses[0]
    assert results[0] == results[1]


def test_a_stuck_rank_ends_the_run_with_rank_step_and_shards(tiny_shards, tmp_path):
    args = [
        *fit_args_for(tiny_shards, tmp_path),
        *TWO_RANKS,
        "--model.duration.samples=1600000",
        "--run.rank_timeout_seconds=20",  # ranks also have so long to find each other
    ]
    run = run_of(args)
    log = tmp_path / "log"
    with log.open("w") as file:  # a pipe would stay open in the rank that is stuck
        process = subprocess.Popen([sys.executable, "-m", "vitlight", *args], stdout=file, stderr=file)
    other = None
    try:
        deadline = time.monotonic() + 120
        while not run.rows():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        # Lightning starts the other rank as a child.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        other = next(pid for pid in map(int, children) if b"vitlight" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(other, signal.SIGSTOP)
        assert process.wait(timeout=120) == 1
    finally:
        for pid in (other, process.pid):
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()
    reason = run.read_result()["reason"]
    assert re.match(r"rank 0 of 2 failed at step \d+, which reads .*shard-00000\d\.tar.*: .*[Tt]ime", reason)
    assert reason in log.read_text()

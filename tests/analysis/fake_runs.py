"""Run directories with results made up from a scaling law: what the analysis tests read."""

import json
from pathlib import Path
from typing import Any

import numpy as np

MACS_PER_RUNG = (2_500_000, 10_000_000, 40_000_000, 160_000_000)
FAMILIES = ("vit", "coatnet", "resnet")
NUM_EVAL_SAMPLES = 10_000


def result(arch: str, num_train_samples: int, seed: int, **changes: Any) -> dict[str, Any]:
    """A whole result.json object; `changes` replace fields. The arch is `<family>_nano<rung>`."""
    family, rung = arch.split("_nano")
    forward_macs = MACS_PER_RUNG[int(rung) - 1] + 1000 * FAMILIES.index(family)
    rng = np.random.default_rng([FAMILIES.index(family), int(rung), num_train_samples, seed])
    error = (
        0.04 + 2.6 * num_train_samples**-0.33 + {"vit": 5, "coatnet": 3, "resnet": 3.4}[family] * forward_macs**-0.29
    )
    count = round(NUM_EVAL_SAMPLES * (1 - error + 0.006 * rng.standard_normal()))
    samples_seen = 8 * num_train_samples
    wall_seconds = 4 + samples_seen * forward_macs / 4e10
    made: dict[str, Any] = {
        "schema": 1,
        "run_id": f"{arch}-{num_train_samples}-{seed}",
        "name": "quickstart",
        "status": "done",
        "arch": arch,
        "family": family,
        "seed": seed,
        "params": forward_macs // 50,
        "forward_macs": forward_macs,
        "image_size": 32,
        "in_channels": 3,
        "num_classes": 10,
        "num_train_samples": num_train_samples,
        "global_batch_size": 128,
        "horizon_samples": samples_seen,
        "samples_seen": samples_seen,
        "unique_samples_seen": num_train_samples,
        "epochs": 8.0,
        "train_flops": 6 * forward_macs * samples_seen,
        "own_train_flops": 6 * forward_macs * samples_seen,
        "own_device_seconds": 0.9 * wall_seconds,
        "wall_seconds": wall_seconds,
        "device_seconds": 0.9 * wall_seconds,
        "images_per_second": samples_seen / wall_seconds,
        "eval_split": "test",
        "num_eval_samples": NUM_EVAL_SAMPLES,
        "top1": count / NUM_EVAL_SAMPLES,
        "top5": 0.99,
        "loss": 2.2 * error,
        "top1_count": count,
        "mean_class_top1": count / NUM_EVAL_SAMPLES,
        "val_top1": count / NUM_EVAL_SAMPLES - 0.01,
        "val_top5": 0.98,
        "val_loss": 2.3 * error,
        "lr": 0.001,
        "weight_decay": 0.05,
        "started_at": "2026-11-22T10:00:00Z",
        "finished_at": f"2026-11-22T10:{int(rung):02d}:{seed:02d}Z",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "lightning": "2.6.6", "vitlight": "0.1.0"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "data_digest": "d1ce5ade0123456789",
        "device": "cpu",
        "num_ranks": 1,
        "reason": None,
        "last_good_checkpoint": None,
        "rollbacks": [],
    }
    return made | changes


def write_run(root: Path, run: dict[str, Any]) -> Path:
    """Write one run directory `root/<name>/<run_id>`."""
    run_dir = root / str(run["name"]) / str(run["run_id"])
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "experiment.yaml").write_text(f"seed_everything: {run['seed']}\nmodel:\n  arch: {run['arch']}\n")
    (run_dir / "result.json").write_text(json.dumps(run))
    return run_dir


def write_evaluations(run_dir: Path, num: int = 6) -> Path:
    """metrics.jsonl of a run that `write_run` wrote: a row of training, then one of `num` evaluations, and so on; their
    val/top1 rises to the result's over samples_seen."""
    run = json.loads((run_dir / "result.json").read_text())
    rows = []
    for place in range(1, num + 1):
        seen = run["samples_seen"] * place // num
        rows.append({"event": "train", "step": place, "data/samples_seen": seen - 1, "train/loss": 1 / place})
        top1 = run["val_top1"] * (1 - 0.5 * (1 - place / num) ** 2)
        rows.append({"event": "val", "step": place, "data/samples_seen": seen, "val/top1": top1})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


def write_grid(
    root: Path,
    rungs: tuple[int, ...] = (1, 2, 3),
    sizes: tuple[int, ...] = (500, 2000, 8000),
    seeds: tuple[int, ...] = (0, 1),
    **changes: Any,
) -> Path:
    """Every family x rung x size x seed, done, beneath `root`."""
    for family in FAMILIES:
        for rung in rungs:
            for size in sizes:
                for seed in seeds:
                    write_run(root, result(f"{family}_nano{rung}", size, seed, **changes))
    return root

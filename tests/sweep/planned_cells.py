"""Planned cells as plain values, and the results that they would leave."""

import json
import platform
from pathlib import Path

from jsonargparse import Namespace

from vitlight.sweep.leases import LeaseWatch
from vitlight.sweep.plan import PlannedCell
from vitlight.sweep.space import Cell
from vitlight.training.locks import Lock
from vitlight.training.resolve import ResolvedRun

__all__ = ["planned_cell", "write_done"]


def settings(precision: str = "32-true", devices: int | str = 1, **model) -> Namespace:
    """The settings that estimates read, as base.yaml has them."""
    optimizer = {"name": "adamw", "momentum": None, "momentum_dtype": "float32", **model.pop("optimizer", {})}
    trainer = {"accelerator": "cpu", "devices": devices, "num_nodes": 1, "strategy": "auto", "precision": precision}
    values = {"model_options": None, "activation_checkpointing": False, "ema_decay": None, **model}
    return Namespace(
        model=Namespace(**values, optimizer=Namespace(**optimizer)),
        trainer=Namespace(**trainer, accumulate_grad_batches=1),
        data=Namespace(num_classes=10, image_size=32, channels=3),
    )


def planned_cell(
    index: int = 0,
    arch: str = "vit_nano1",
    macs: int = 1000,
    steps: int = 10,
    folder: Path = Path("runs/demo"),
    own: float = 1.0,
    seed: int = 0,
    batch: int = 10,
    **how,
) -> PlannedCell:
    """One of `steps` steps of `batch` images. `own`: the part of its FLOPs that no other cell of its trunk does."""
    parameters = {"data.num_train_samples": steps, "model.arch": arch, "seed_everything": seed}
    images = steps * batch
    run = ResolvedRun(
        run_id=f"run{index}",
        run_dir=folder / f"run{index}",
        arch=arch,
        image_size=32,
        num_train_samples=images,
        params=macs,
        forward_macs=macs,
        horizon_samples=images,
        steps=steps,
        train_flops=6 * macs * images,
        global_batch_size=batch,
        seed=seed,
        settings=settings(arch=arch, **how),
    )
    cell = Cell(index, parameters, ("fit",), " ".join(f"{name}={value}" for name, value in parameters.items()))
    return PlannedCell(cell, ("fit",), run, int(own * run.train_flops))


def write_done(planned: PlannedCell, device_seconds: float, **values) -> None:
    """Its result.json, of one rank."""
    result = {
        "status": "done",
        "own_train_flops": planned.own_train_flops,
        "own_device_seconds": device_seconds,
        "device_seconds": device_seconds,
        "wall_seconds": device_seconds,
        "num_ranks": 1,
        "origin": None,
        "perf": {"startup_seconds": 0.0},
        **values,
    }
    planned.run.run_dir.mkdir(parents=True, exist_ok=True)
    (planned.run.run_dir / "result.json").write_text(json.dumps(result))


def leave_to_dead_host(claim: Path, monkeypatch) -> None:
    """As if host gpu7 had taken the claim, and were gone: a lease with beats of 0.01 s of which none comes."""
    claim.parent.mkdir(parents=True)
    claim.touch()
    with monkeypatch.context() as there:
        there.setattr(platform, "node", lambda: "gpu7")
        LeaseWatch(0.01).take(claim, Lock(-1, claim, "elsewhere"))

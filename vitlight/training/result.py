"""result.json: what a run came to, in one flat object."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl

from vitlight.data.datamodule import ShardedImages
from vitlight.training.callbacks import Record
from vitlight.training.classifier import ImageClassifier
from vitlight.training.experiment import ExperimentCLI
from vitlight.training.frozen_features import last_few_shot
from vitlight.training.origin import own_share
from vitlight.training.position import axes_at
from vitlight.training.record import RunDirectory, code_commit, package_versions
from vitlight.training.resolve import ResolvedRun
from vitlight.training.run_settings import RunSettings

__all__ = ["SUMMARY", "build_result", "describe"]

# What of it stands in W&B's summary.
SUMMARY = (
    *("status", "params", "forward_macs", "train_flops", "samples_seen", "unique_samples_seen"),
    *("top1", "top5", "eval_split", "val_top1", "wall_seconds", "device_seconds", "images_per_second"),
)


class Attempt(Protocol):
    """What a result is made from: one process's work on a run."""

    cli: ExperimentCLI
    resolved: ResolvedRun
    run: RunDirectory
    settings: RunSettings
    trainer: pl.Trainer
    model: ImageClassifier
    data: ShardedImages
    record: Record
    started_at: str


def build_result(
    attempt: Attempt, status: str, reason: str | None, last_good_checkpoint: Path | None
) -> dict[str, Any]:
    """Metrics are null unless `status` is done; times are those of all attempts together, and end now."""
    resolved, settings = attempt.resolved, attempt.cli.settings
    trainer, model, data, record = attempt.trainer, attempt.model, attempt.data, attempt.record
    axes = axes_at(trainer.global_step, data.plan, resolved.forward_macs)
    results = model.results if status == "done" else {}
    final = results.get("test") or results.get("val") or {}
    val = results.get("val", {})
    seconds = record.device_seconds / trainer.world_size
    has_few_shot = status == "done" and attempt.settings.few_shot_every is not None
    return {
        "schema": 1,
        "run_id": resolved.run_id,
        "name": attempt.settings.name,
        "status": status,
        "reason": reason,
        "last_good_checkpoint": last_good_checkpoint and str(last_good_checkpoint.relative_to(attempt.run.path)),
        "rollbacks": model.rollbacks,
        "arch": resolved.arch,
        "family": model.family,
        "seed": resolved.seed,
        "params": resolved.params,
        "forward_macs": resolved.forward_macs,
        "image_size": resolved.image_size,
        "in_channels": settings.data.channels,
        "num_classes": settings.data.num_classes,
        "num_train_samples": resolved.num_train_samples,
        "global_batch_size": resolved.global_batch_size,
        "horizon_samples": resolved.horizon_samples,
        **{name.partition("/")[2]: value for name, value in axes.items()},
        **own_share(attempt.run, model.samples_seen, resolved.forward_macs, record.device_seconds),
        "skipped_samples": len(attempt.run.skipped(trainer.global_step)),
        "wall_seconds": record.wall_seconds,
        "device_seconds": record.device_seconds,
        "images_per_second": axes["data/samples_seen"] / seconds if seconds else None,
        **record.performance_summary(
            trainer, model, data.num_workers if data.shared_loader is None else None, settings.model.compile
        ),
        "eval_split": "test" if "test" in results else "val" if "val" in results else None,
        "num_eval_samples": final.get("num_images"),
        **{name: final.get(name) for name in ("top1", "top5", "loss", "top1_count")},
        "mean_class_top1": None if data.is_multi_label else final.get("mean_class_top1"),
        **{f"val_{name}": val.get(name) for name in ("top1", "top5", "loss")},
        **(last_few_shot(attempt.run, trainer.global_step) if has_few_shot else {}),
        "weights_digest": settings.model.weights_digest,
        "lr": settings.model.optimizer.lr,
        "weight_decay": settings.model.optimizer.weight_decay,
        "num_ranks": trainer.world_size,
        "device": str(trainer.strategy.root_device),
        "data_digest": data.data_digest,
        "plan_digest": data.plan.digest,
        "versions": package_versions(),
        "commit": code_commit(),
        "started_at": attempt.started_at,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe(result: dict[str, Any]) -> str:
    """One line: accuracy as the count it is, compute, and speed."""
    if result["top1"] is None:
        return result["reason"] or ""
    return (
        f"{result['eval_split']} top-1 {100 * result['top1']:.2f} % ({result['top1_count']:,} of "
        f"{result['num_eval_samples']:,}), {result['samples_seen']:,} images seen, {result['train_flops']:.3e} train "
        f"FLOPs (FLOP = half a MAC), {result['images_per_second'] or 0:,.0f} images/s"
    )

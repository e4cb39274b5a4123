"""Runs what an experiment says: fit (new, resumed or already done), validate, test."""

import json
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.seed import seed_everything

from vitlight.data.datamodule import ShardedImages
from vitlight.errors import InputError
from vitlight.training.allocator import keep_freed_memory
from vitlight.training.callbacks import Record
from vitlight.training.checkpoint import newest_checkpoint, remove_leftovers, write_atomically
from vitlight.training.checkpoints import Checkpoints
from vitlight.training.classifier import ImageClassifier, axes_at
from vitlight.training.divergence import Diverged, Divergence, set_aside
from vitlight.training.ema import WeightAverage
from vitlight.training.experiment import ExperimentCLI
from vitlight.training.origin import LeavesTrunk, begin, own_share, read_origin
from vitlight.training.pretrained import locate_weights
from vitlight.training.record import RunDirectory, code_commit, package_versions
from vitlight.training.resolve import ResolvedRun, resolve
from vitlight.training.rollback import note_rollback, read_rollbacks
from vitlight.training.run_settings import RunSettings
from vitlight.training.signals import StopSignals
from vitlight.training.skipped import SkippedSamples
from vitlight.training.start import agree_on_start
from vitlight.training.stopping import StopAtBoundary, Stopped, is_launched_by_lightning, let_no_other_handle_signals
from vitlight.training.trainer import build_fit_trainer, build_trainer, show_on_wandb
from vitlight.training.wandb import is_rank_zero

__all__ = ["DIVERGED", "evaluate", "fit"]

DIVERGED = 3  # exit code of a run whose loss is no longer finite


def fit(cli: ExperimentCLI, stop: StopSignals) -> int:
    """Train to the horizon from wherever the run's directory stands, evaluate, and write result.json; returns the exit
    code."""
    data = cli.build_data()
    resolved = resolve(cli, data)
    run = RunDirectory(resolved.run_dir)
    earlier = run.read_result()
    if earlier is not None and earlier["status"] in ("done", "diverged"):
        print(f"{run.path}: {earlier['status']} already, nothing to do. {_verdict(earlier)}")
        return DIVERGED if earlier["status"] == "diverged" else 0
    settings = cli.build_run_settings()
    stop.listen_to(settings.stop_signals, settings.rank_timeout_seconds)
    if not len(data.val_ids) and data.test_index is None:
        raise InputError("data.val_fraction=0.0 and data.test=null: there is nothing to evaluate on")
    if cli.settings.model.weights is not None and newest_checkpoint(run.checkpoints) is None:
        locate_weights(cli.settings.model.weights)  # a resumed run can do without
    run.create()
    with run.claimed(settings.claim_wait_seconds) if is_rank_zero() else nullcontext():
        if is_rank_zero():
            remove_leftovers(run.checkpoints)
            write_atomically(run.experiment_path, cli.dump())
            if not read_rollbacks(run):
                begin(run, resolved.trunk, settings.extend)
        code = _Fit(cli, resolved, run, settings, stop).go(data)
        if code is None:
            data = cli.build_data()
            data.prepare()
            code = _Fit(cli, resolved, run, settings, stop).go(data)
        assert code is not None, "a run is set back once"
        return code


class _Fit:
    """One attempt at a run, by one process."""

    def __init__(
        self, cli: ExperimentCLI, resolved: ResolvedRun, run: RunDirectory, settings: RunSettings, stop: StopSignals
    ) -> None:
        self.cli, self.resolved, self.run, self.settings, self.stop = cli, resolved, run, settings, stop
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")

    def go(self, data: ShardedImages) -> int | None:
        """The exit code; None where the run diverged and was set back to an earlier step, for another attempt."""
        seed_everything(self.resolved.seed, workers=False, verbose=False)
        model = self.cli.build_model()
        model.rollbacks, origin = read_rollbacks(self.run), read_origin(self.run)
        model.origin_step = origin.step if origin is not None else None
        evaluate_every = None
        if len(data.val_ids):
            evaluate_every = max(1, -(-self.resolved.steps // self.settings.num_evaluations))
        record = Record(self.run, self.settings, evaluate_every)
        leaving = self._leaves_trunk(record, model)
        also_at = frozenset(one.trunk.last_step for one in leaving)
        on_saved = leaving[0].saved if leaving else None
        checkpoints = Checkpoints(self.run, self.settings, evaluate_every, also_at, on_saved, record.ledger)
        skipped = SkippedSamples(self.run, data.max_skipped_samples)
        stopping = StopAtBoundary(self.stop, checkpoints, evaluate_every, self.settings.rank_timeout_seconds)
        divergence = Divergence(record, self.settings.log_every_steps)
        average = [WeightAverage(model.ema_decay, model.ema_warmup)] if model.ema_decay is not None else []
        callbacks = [*average, skipped, record, divergence, *leaving, checkpoints, stopping]
        trainer = build_fit_trainer(self.cli, self.resolved, self.run, callbacks, evaluate_every)
        let_no_other_handle_signals(trainer)
        if trainer.world_size > 1:
            self.stop.defer()
        if trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        record.projection = show_on_wandb(self.cli, self.resolved, self.run, self.settings)
        data.plan.micro_batch_size(trainer.world_size, trainer.accumulate_grad_batches)
        try:
            self._train_and_evaluate(trainer, model, data, record)
            checkpoints.wait()
        except Diverged as error:
            return self._diverged(trainer, model, data, record, error)
        except Stopped as stopped:
            return self._stopped(trainer, record, stopped)
        except Exception as error:
            if trainer.world_size > 1 and self.stop.signum is not None and not isinstance(error, InputError):
                # Other ranks were asked to stop as well, and this one waited for one that was already gone.
                return self._stopped(trainer, record, Stopped(trainer.global_step, self.stop.exit_code))
            lines = str(error).strip().splitlines()
            reason = lines[-1].strip() if lines else type(error).__name__
            if trainer.world_size == 1 or isinstance(error, InputError):
                self._finish(trainer, model, data, record, "failed", reason)
                raise
            # Most likely another rank is gone or stuck, and only the ranks together tell which, and over what.
            rank, step = trainer.global_rank, trainer.global_step
            shards = data.shards_of_step(step, rank, trainer.world_size)
            named = ", ".join(shards[:3]) + (f" and {len(shards) - 3} more" if len(shards) > 3 else "")
            reason = f"rank {rank} of {trainer.world_size} failed at step {step}, which reads {named}: {reason}"
            self._finish(trainer, model, data, record, "failed", reason)
            raise RuntimeError(reason) from error
        result = self._finish(trainer, model, data, record, "done", None)
        if trainer.is_global_zero:
            print(f"{self.run.path}: done. {_verdict(result)}\n{result['verdict']}")
        return 0

    def _leaves_trunk(self, record: Record, model: ImageClassifier) -> list[LeavesTrunk]:
        """One callback where there is a trunk. A run that went back has left it for good: its rates are its own."""
        trunk = self.resolved.trunk
        if trunk is None or model.rollbacks:
            return []
        return [LeavesTrunk(trunk, self.run, self.resolved.run_id, self.resolved.global_batch_size, record)]

    def _train_and_evaluate(
        self, trainer: pl.Trainer, model: ImageClassifier, data: ShardedImages, record: Record
    ) -> None:
        found = agree_on_start(trainer, self.run.checkpoints)
        start, path = found if found is not None else (0, None)
        if path is not None:
            model.weights = None  # the checkpoint holds what became of them
        if path is not None and trainer.is_global_zero:
            print(f"{self.run.path}: resumes at step {start} of {self.resolved.steps}", file=sys.stderr)
        if start < self.resolved.steps:
            trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
            path = None
        if len(data.val_ids) and model.results.get("val", {}).get("step") != self.resolved.steps:
            trainer.validate(model, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
            path = None
        if data.test_index is not None:
            trainer.test(model, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)

    def _diverged(
        self, trainer: pl.Trainer, model: ImageClassifier, data: ShardedImages, record: Record, error: Diverged
    ) -> int | None:
        """End the run as diverged; or set it back, once and where that is asked for, and return None."""
        good = set_aside(self.run.checkpoints, error) if trainer.is_global_zero else None
        step, path = good if good is not None else (0, None)
        factor = None if model.rollbacks else model.rollback_lr_factor
        if trainer.is_global_zero:
            then = "" if factor is None else f"; it goes back to step {step}, with {factor} times the learning rate"
            print(f"vitlight: {self.run.path} diverged: {error}{then}", file=sys.stderr)
        if factor is None:
            self._finish(trainer, model, data, record, "diverged", str(error), last_good_checkpoint=path)
        else:
            if trainer.is_global_zero:
                note_rollback(self.run, error.step, str(error), step, factor)
            record.close(trainer, {}, 0)
        trainer.strategy.barrier(
            "diverged"
        )  # what is written is read by all, and launchers kill the rest after a failure
        if factor is not None:
            return None
        return 0 if is_launched_by_lightning(trainer) else DIVERGED

    def _stopped(self, trainer: pl.Trainer, record: Record, stopped: Stopped) -> int:
        """Say so, close the loggers, and give the exit code."""
        if trainer.is_global_zero:
            where = f"at step {stopped.step} of {self.resolved.steps}"
            print(f"vitlight: {self.run.path} stopped {where}; the same command goes on", file=sys.stderr)
        record.close(trainer, {}, stopped.exit_code)
        return 0 if is_launched_by_lightning(trainer) else stopped.exit_code

    def _finish(
        self,
        trainer: pl.Trainer,
        model: ImageClassifier,
        data: ShardedImages,
        record: Record,
        status: str,
        reason: str | None,
        last_good_checkpoint: Path | None = None,
    ) -> dict[str, Any]:
        """Write result.json and close the loggers, on rank 0."""
        resolved, settings = self.resolved, self.cli.settings
        axes = axes_at(trainer.global_step, data.plan, resolved.forward_macs)
        results = model.results if status == "done" else {}
        final = results.get("test") or results.get("val") or {}
        val = results.get("val", {})
        seconds = record.device_seconds / trainer.world_size
        result = {
            "schema": 1,
            "run_id": resolved.run_id,
            "name": self.settings.name,
            "status": status,
            "reason": reason,
            "last_good_checkpoint": last_good_checkpoint and str(last_good_checkpoint.relative_to(self.run.path)),
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
            **own_share(self.run, model.samples_seen, resolved.forward_macs, record.device_seconds),
            "skipped_samples": len(self.run.skipped(trainer.global_step)),
            "wall_seconds": record.wall_seconds,
            "device_seconds": record.device_seconds,
            "images_per_second": axes["data/samples_seen"] / seconds if seconds else None,
            **record.performance_summary(trainer, model, data.num_workers, settings.model.compile),
            "eval_split": "test" if "test" in results else "val" if "val" in results else None,
            "num_eval_samples": final.get("num_images"),
            **{name: final.get(name) for name in ("top1", "top5", "loss", "top1_count")},
            **{f"val_{name}": val.get(name) for name in ("top1", "top5", "loss")},
            "weights_digest": settings.model.weights_digest,
            "lr": settings.model.optimizer.lr,
            "weight_decay": settings.model.optimizer.weight_decay,
            "num_ranks": trainer.world_size,
            "device": str(trainer.strategy.root_device),
            "data_digest": data.data_digest,
            "plan_digest": data.plan.digest,
            "versions": package_versions(),
            "commit": code_commit(),
            "started_at": self.started_at,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if trainer.is_global_zero:
            self.run.write_result(result)
        record.close(trainer, {name: result[name] for name in _SUMMARY}, 0 if status == "done" else 1)
        return result


_SUMMARY = (
    *("status", "params", "forward_macs", "train_flops", "samples_seen", "unique_samples_seen"),
    *("top1", "top5", "eval_split", "val_top1", "wall_seconds", "device_seconds", "images_per_second"),
)


def _verdict(result: dict[str, Any]) -> str:
    """One line: accuracy as the count it is, compute, and speed."""
    if result["top1"] is None:
        return result["reason"] or ""
    return (
        f"{result['eval_split']} top-1 {100 * result['top1']:.2f} % ({result['top1_count']:,} of "
        f"{result['num_eval_samples']:,}), {result['samples_seen']:,} images seen, {result['train_flops']:.3e} train "
        f"FLOPs (FLOP = half a MAC), {result['images_per_second'] or 0:,.0f} images/s"
    )


def evaluate(cli: ExperimentCLI) -> int:
    """`validate` or `test` of one checkpoint: prints the exact counts as one JSON line."""
    data, checkpoint = cli.build_data(), cli.settings.ckpt_path
    if checkpoint is None or not Path(checkpoint).is_file():
        raise InputError(f"--ckpt_path={checkpoint} is not a file; name one of runs/NAME/RUN_ID/checkpoints/")
    data.prepare()
    split = "val" if cli.subcommand == "validate" else "test"
    if split == "val" and not len(data.val_ids):
        raise InputError("data.val_fraction=0.0 leaves no validation images; use `vitlight test` or hold some out")
    model = cli.build_model()
    arguments = {**cli.build_trainer_settings(), "logger": False, "callbacks": []}
    arguments["enable_progress_bar"] = bool(arguments.get("enable_progress_bar"))
    trainer = build_trainer(
        **arguments, enable_checkpointing=False, use_distributed_sampler=False, default_root_dir=Path(checkpoint).parent
    )
    run = trainer.validate if split == "val" else trainer.test
    run(model, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    if trainer.is_global_zero:
        print(json.dumps({"split": split, "checkpoint": str(checkpoint), **model.results[split]}))
    return 0

"""Runs what an experiment says: new, resumed or already done."""

from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.seed import seed_everything

from vitlight.data.datamodule import ShardedImages
from vitlight.errors import InputError
from vitlight.messages import say
from vitlight.training.allocator import keep_freed_memory
from vitlight.training.callbacks import Record
from vitlight.training.checkpoint import newest_checkpoint, remove_leftovers, write_atomically
from vitlight.training.checkpoint_io import NotSaved
from vitlight.training.checkpoints import Checkpoints
from vitlight.training.divergence import Diverged, Divergence, set_aside
from vitlight.training.early_end import EarlyEnd, EndedEarly
from vitlight.training.ema import WeightAverage
from vitlight.training.experiment import ExperimentCLI
from vitlight.training.frozen_features import FrozenFeatures
from vitlight.training.origin import LeavesTrunk, begin, read_origin
from vitlight.training.pretrained import locate_weights
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import ResolvedRun, resolve
from vitlight.training.result import SUMMARY, build_result, describe
from vitlight.training.rollback import note_rollback, read_rollbacks
from vitlight.training.run_settings import RunSettings
from vitlight.training.sharded import ShardedStrategy
from vitlight.training.signals import StopSignals
from vitlight.training.skipped import SkippedSamples
from vitlight.training.start import agree_on_start
from vitlight.training.stop_file import StopFile
from vitlight.training.stopping import StopAtBoundary, Stopped, is_launched_by_lightning, let_no_other_handle_signals
from vitlight.training.trainer import build_fit_trainer, show_on_wandb
from vitlight.training.wandb import is_new_to_agent, is_rank_zero
from vitlight.training.wandb_run import conclude

__all__ = ["DIVERGED", "fit"]

DIVERGED = 3  # exit code of a run whose loss is no longer finite


def fit(cli: ExperimentCLI, stop: StopSignals) -> int:
    """Train to the horizon from wherever the run's directory stands, evaluate, and write result.json; returns the exit
    code."""
    data = cli.build_data()
    resolved = resolve(cli, data)
    run = RunDirectory(resolved.run_dir)
    earlier = run.read_result()
    if earlier is not None and earlier["status"] in ("done", "diverged", "stopped"):
        print(f"{run.path}: {earlier['status']} already, nothing to do. {describe(earlier)}")
        if is_new_to_agent(run) and (projection := show_on_wandb(cli, resolved, run, cli.build_run_settings())):
            conclude(projection, earlier)
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
            StopFile(run.path).withdraw()
            remove_leftovers(run.checkpoints)
            write_atomically(run.experiment_path, cli.dump())
            if not read_rollbacks(run):
                begin(run, resolved.trunk, settings.extend)
        code = _Fit(cli, resolved, run, settings, stop, data).go()
        if code is None:
            data = cli.build_data()
            data.prepare()
            code = _Fit(cli, resolved, run, settings, stop, data).go()
        assert code is not None, "a run is set back once"
        return code


class _Fit:
    """One attempt at a run, by one process."""

    def __init__(
        self,
        cli: ExperimentCLI,
        resolved: ResolvedRun,
        run: RunDirectory,
        settings: RunSettings,
        stop: StopSignals,
        data: ShardedImages,
    ) -> None:
        self.cli, self.resolved, self.run, self.settings, self.stop, self.data = (
            cli,
            resolved,
            run,
            settings,
            stop,
            data,
        )
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        seed_everything(resolved.seed, workers=False, verbose=False)
        self.model = model = cli.build_model()
        model.rollbacks = read_rollbacks(run)
        evaluate_every = None
        if len(data.val_ids):
            evaluate_every = max(1, -(-resolved.steps // settings.num_evaluations))
        self.record = Record(run, settings, evaluate_every)
        leaving = self._leaves_trunk()
        also_at = frozenset(one.trunk.last_step for one in leaving)
        on_saved = leaving[0].saved if leaving else None
        self.checkpoints = Checkpoints(run, settings, evaluate_every, also_at, on_saved, self.record.ledger)
        average = WeightAverage(model.ema_decay, model.ema_warmup) if model.ema_decay is not None else None
        callbacks = [
            *([average] if average is not None else []),
            SkippedSamples(run, data.max_skipped_samples),
            self.record,
            Divergence(self.record, settings.log_every_steps),
            EarlyEnd(run, settings.log_every_steps),
            *leaving,
            *([FrozenFeatures(data, settings, self.record, average)] if settings.few_shot_every is not None else []),
            *self._inside_views(average),
            self.checkpoints,
            StopAtBoundary(stop, StopFile(run.path), self.checkpoints, evaluate_every, settings.rank_timeout_seconds),
        ]
        self.trainer = build_fit_trainer(cli, resolved, run, callbacks, evaluate_every)
        if settings.inspect_every is not None and isinstance(self.trainer.strategy, ShardedStrategy):
            raise InputError(
                "run.inspect_every needs whole weights, and trainer.strategy=fsdp2 splits them: leave it out, and give "
                "checkpoints to `vitlight inspect`"
            )

    def _inside_views(self, average: WeightAverage | None) -> list[pl.Callback]:
        if self.settings.inspect_every is None:
            return []
        from vitlight.training.insight import InsideViews  # pandas and matplotlib take a second

        return [InsideViews(self.settings, self.record, average)]

    def go(self) -> int | None:
        """The exit code; None where the run diverged and was set back to an earlier step, for another attempt."""
        trainer = self.trainer
        let_no_other_handle_signals(trainer)
        if trainer.world_size > 1:
            self.stop.defer()
        if trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        self.record.projection = show_on_wandb(self.cli, self.resolved, self.run, self.settings)
        self.data.plan.micro_batch_size(trainer.world_size, trainer.accumulate_grad_batches)
        try:
            self._train_and_evaluate()
            self.checkpoints.wait()
        except Diverged as error:
            return self._diverged(error)
        except EndedEarly as error:
            return self._ended_early(str(error))
        except Stopped as stopped:
            return self._stopped(stopped)
        except NotSaved as error:
            self._finish("failed", str(error))
            trainer.strategy.barrier("not saved")  # launchers kill the rest after a failure
            if is_launched_by_lightning(trainer):
                return 0
            raise
        except Exception as error:
            if trainer.world_size > 1 and self.stop.signum is not None and not isinstance(error, InputError):
                # Other ranks were asked to stop as well, and this one waited for one that was already gone.
                return self._stopped(Stopped(trainer.global_step, self.stop.exit_code), saved=False)
            lines = str(error).strip().splitlines()
            reason = lines[-1].strip() if lines else type(error).__name__
            if trainer.world_size == 1 or isinstance(error, InputError):
                self._finish("failed", reason)
                raise
            # Most likely another rank is gone or stuck, and only the ranks together tell which, and over what.
            rank, step = trainer.global_rank, trainer.global_step
            shards = self.data.shards_of_step(step, rank, trainer.world_size)
            named = ", ".join(shards[:3]) + (f" and {len(shards) - 3} more" if len(shards) > 3 else "")
            reason = f"rank {rank} of {trainer.world_size} failed at step {step}, which reads {named}: {reason}"
            self._finish("failed", reason)
            raise RuntimeError(reason) from error
        result = self._finish("done", None)
        if trainer.is_global_zero:
            print("\n".join([f"{self.run.path}: done. {describe(result)}", *self.model.set_scores.describe()]))
            print(result["verdict"])
        return 0

    def _leaves_trunk(self) -> list[LeavesTrunk]:
        """One callback where there is a trunk. A run that went back has left it for good: its rates are its own."""
        trunk = self.resolved.trunk
        if trunk is None or self.model.rollbacks:
            return []
        return [LeavesTrunk(trunk, self.run, self.resolved.run_id, self.resolved.global_batch_size, self.record)]

    def _train_and_evaluate(self) -> None:
        trainer, model, data = self.trainer, self.model, self.data
        found = agree_on_start(trainer, self.run.checkpoints)
        start, path = found if found is not None else (0, None)
        origin = read_origin(self.run)  # rank 0 wrote it before the ranks agreed
        model.origin_step = origin.step if origin is not None else None
        if path is not None:
            model.weights = None  # the checkpoint holds what became of them
        if path is not None and trainer.is_global_zero:
            say(f"{self.run.path}: resumes at step {start} of {self.resolved.steps}")
        if start < self.resolved.steps:
            trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
            path = None
        if len(data.val_ids) and model.results.get("val", {}).get("step") != self.resolved.steps:
            trainer.validate(model, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
            path = None
        if data.is_tested:
            trainer.test(model, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
            if trainer.is_global_zero:
                model.set_scores.keep(self.run.path)

    def _diverged(self, error: Diverged) -> int | None:
        """End the run as diverged; or set it back, once and where that is asked for, and return None."""
        trainer, model = self.trainer, self.model
        good = set_aside(self.run.checkpoints, error) if trainer.is_global_zero else None
        step, path = good if good is not None else (0, None)
        factor = None if model.rollbacks else model.rollback_lr_factor
        if trainer.is_global_zero:
            then = "" if factor is None else f"; it goes back to step {step}, with {factor} times the learning rate"
            say(f"vitlight: {self.run.path} diverged: {error}{then}")
        if factor is None:
            self._finish("diverged", str(error), last_good_checkpoint=path)
        else:
            if trainer.is_global_zero:
                note_rollback(self.run, error.step, str(error), step, factor)
            self.record.close(trainer, {}, 0)
        # What is written is read by all, and launchers kill the rest after a failure.
        trainer.strategy.barrier("diverged")
        if factor is not None:
            return None
        return 0 if is_launched_by_lightning(trainer) else DIVERGED

    def _ended_early(self, reason: str) -> int:
        """Somebody has asked for it: the result says so, and has no metrics."""
        with suppress(NotSaved):
            self.checkpoints.wait()
        if self.trainer.is_global_zero:
            where = f"at step {self.trainer.global_step} of {self.resolved.steps}"
            say(f"vitlight: {self.run.path} ended early, {where}: {reason}")
        self._finish("stopped", reason)
        self.trainer.strategy.barrier("ended early")
        return 0

    def _stopped(self, stopped: Stopped, saved: bool = True) -> int:
        """Say so, close the loggers, and give the exit code."""
        if self.trainer.is_global_zero:
            where, goes_on = f"at step {stopped.step} of {self.resolved.steps}", "the same command goes on"
            if not saved:
                newest = newest_checkpoint(self.run.checkpoints)
                where += " without another rank, so nothing of it was saved"
                goes_on += (
                    f" from step {newest[0]}"
                    if newest is not None
                    else " from the beginning: no checkpoint was due yet"
                )
            say(f"vitlight: {self.run.path} stopped {where}; {goes_on}")
        self.record.close(self.trainer, {}, stopped.exit_code)
        return 0 if is_launched_by_lightning(self.trainer) else stopped.exit_code

    def _finish(self, status: str, reason: str | None, last_good_checkpoint: Path | None = None) -> dict[str, Any]:
        """Write result.json and close the loggers, on rank 0."""
        result = build_result(self, status, reason, last_good_checkpoint)
        if self.trainer.is_global_zero:
            self.run.write_result(result)
        self.record.close(
            self.trainer, {name: result[name] for name in SUMMARY}, 0 if status in ("done", "stopped") else 1
        )
        return result

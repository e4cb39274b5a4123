"""ImageClassifier: the one LightningModule, for every architecture."""

import sys
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from vitlight.cost import count_params, forward_macs, train_flops
from vitlight.data.datamodule import ShardedImages
from vitlight.data.plan import DataPlan, hash_words
from vitlight.errors import InputError
from vitlight.models import arch_family, build_model, set_activation_checkpointing
from vitlight.training.accuracy import ExactAccuracy
from vitlight.training.memory_format import MemoryFormat, choose_memory_format
from vitlight.training.optim import AdamW
from vitlight.training.pretrained import load_pretrained
from vitlight.training.schedule import Duration, WarmupCosine

__all__ = ["ImageClassifier", "axes_at"]

Batch = dict[str, Any]
_DROPOUT = 21


def axes_at(step: int, plan: DataPlan, forward_macs: int) -> dict[str, float | int]:
    """Every x axis of a plot after `step` optimizer steps, exact."""
    samples = step * plan.global_batch_size
    return {
        "data/samples_seen": samples,
        "data/unique_samples_seen": plan.unique_samples_seen(samples),
        "data/epochs": samples / plan.num_samples,
        "compute/train_flops": train_flops(forward_macs, samples),
    }


class ImageClassifier(pl.LightningModule):
    """Trains and evaluates one architecture on one set of images.

    Where a run stands is one number, the optimizer step: data, schedule, random numbers and counters follow from it.

    Args:
        arch: The one size axis, for example `vit_s16`, `coatnet_0`, `resnet50`; `vitlight models` lists them.
        num_classes: Outputs; linked to `data.num_classes`.
        image_size: Pixels of a side; linked to `data.image_size`.
        in_channels: Linked to `data.channels`.
        duration: How long to train.
        optimizer: AdamW and its settings.
        schedule: Of the learning rate, as a function of samples seen.
        loss: `softmax` cross-entropy, or `sigmoid`: the sum of a binary cross-entropy for each class, for images that may
            have several labels.
        label_smoothing: Part of the target spread evenly over all classes, in [0, 1); training only, softmax only.
        model_options: Further fields of the architecture's config, for example `{drop_path_rate: 0.1}`.
        compile: Compile the network with torch.compile.
        memory_format: Order of the network's maps and kernels in memory; `auto` takes what was measured to be fastest for
            the architecture, device and precision.
        activation_checkpointing: Keep only what enters each block for the backward pass, and compute the rest again: less
            memory for about a third more work, with the same gradients.
        weights: What to start from instead of fresh weights: a file, a URL or `hf-hub:ORG/NAME`. Position embeddings
            and the like are resized to `image_size`. A resumed run doesn't read it.
        weights_digest: What the content of `weights` must be; null: whatever it is when the run starts.
        weights_layout: Whose names the tensors have: `timm`, `google`, `huggingface`, `vitlight`, or `auto`: seen from them.
        weights_head: `load` the classifier too, or leave it `fresh`, as for other classes.
        seed: Of weights and dropout; linked to `seed_everything`.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int,
        image_size: int,
        in_channels: int = 3,
        duration: Duration = Duration(),  # noqa: B008  frozen
        optimizer: AdamW = AdamW(),  # noqa: B008  frozen
        schedule: WarmupCosine = WarmupCosine(),  # noqa: B008  frozen
        loss: Literal["softmax", "sigmoid"] = "softmax",
        label_smoothing: float = 0.0,
        model_options: dict[str, Any] | None = None,
        compile: bool = False,
        memory_format: MemoryFormat = "auto",
        activation_checkpointing: bool = False,
        weights: str | None = None,
        weights_digest: str | None = None,
        weights_layout: Literal["auto", "timm", "google", "huggingface", "vitlight"] = "auto",
        weights_head: Literal["load", "fresh"] = "load",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise InputError(f"model.label_smoothing={label_smoothing} is not in [0, 1)")
        if loss == "sigmoid" and label_smoothing:
            raise InputError(
                f"model.label_smoothing={label_smoothing} has no meaning with model.loss=sigmoid; set it to 0"
            )
        given = {"weights_digest": weights_digest, "weights_layout": weights_layout, "weights_head": weights_head}
        for name, value in given.items():
            if weights is None and value not in (None, "auto", "load"):
                raise InputError(
                    f"model.{name}={value} has no meaning without model.weights; set that, or leave it out"
                )
        self.weights, self.weights_digest = weights, weights_digest
        self.weights_layout, self.weights_head = weights_layout, weights_head
        self.arch, self.family = arch, arch_family(arch)
        self.duration, self.optimizer, self.schedule = duration, optimizer, schedule
        self.loss, self.label_smoothing, self.seed = loss, label_smoothing, seed
        torch.manual_seed(seed)
        self.model = build_model(
            arch, num_classes=num_classes, image_size=image_size, in_channels=in_channels, **(model_options or {})
        )
        self.num_params = count_params(self.model)
        self.forward_macs = forward_macs(self.model, image_size)
        self.memory_format, self._image_format = memory_format, torch.preserve_format
        set_activation_checkpointing(self.model, activation_checkpointing)
        if compile:
            self.model.compile(dynamic=False)  # batches have one size in training and one in evaluation
        self.val_accuracy, self.test_accuracy = ExactAccuracy(), ExactAccuracy()
        self.results: dict[str, dict[str, float | int]] = {}
        self.start_step = 0

    @property
    def images(self) -> ShardedImages:
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(datamodule, ShardedImages)
        return datamodule

    @property
    def horizon_steps(self) -> int:
        plan = self.images.plan
        return self.duration.num_steps(plan.num_samples, plan.global_batch_size, self.forward_macs)

    @property
    def samples_seen(self) -> int:
        return self.trainer.global_step * self.images.plan.global_batch_size

    def axes(self) -> dict[str, float | int]:
        """Every x axis of a plot at the present step, exact."""
        return axes_at(self.trainer.global_step, self.images.plan, self.forward_macs)

    def setup(self, stage: str) -> None:
        self._image_format = choose_memory_format(
            self.memory_format, self.model, self.trainer.strategy.root_device.type, self.trainer.precision
        )
        if self._image_format != torch.preserve_format:
            self.model.to(memory_format=self._image_format)  # type: ignore[call-overload]
        if stage == "fit":
            if self.weights is not None:
                given = (self.weights, self.weights_digest, self.weights_layout, self.weights_head)
                line = load_pretrained(self.model, *given)
                if self.trainer.is_global_zero:
                    print(line, file=sys.stderr)
            self.images.start_step, self.images.num_steps = self.start_step, self.horizon_steps

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer.build(self.model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vitlight"] = {"step": self.trainer.global_step, "plan_digest": self.images.plan.digest}
        # Lightning's own loop counters speak of one process's epochs and loaders; the step says it all.
        checkpoint.pop("loops", None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["vitlight"]
        if self.trainer.training and state["plan_digest"] != self.images.plan.digest:
            raise InputError(
                f"the checkpoint at step {state['step']} was made with data plan {state['plan_digest']}, not "
                f"{self.images.plan.digest}: its data, subset, seed or data.global_batch_size differ"
            )
        self.start_step = self.images.start_step = state["step"]
        # Put Lightning's counters where the run stands.
        loop = self.trainer.fit_loop.epoch_loop
        micro_batches = self.start_step * self.trainer.accumulate_grad_batches
        for field in ("ready", "started", "processed", "completed"):
            setattr(loop.batch_progress.total, field, micro_batches)
        steps = loop.automatic_optimization.optim_progress.optimizer.step.total
        steps.ready = steps.completed = self.start_step
        loop._batches_that_stepped = self.start_step

    def learning_rate_at(self, step: int) -> float:
        """The rate of optimizer step `step` (from 0): the schedule at the middle of its batch."""
        batch = self.images.plan.global_batch_size
        return self.optimizer.lr * self.schedule.factor((step + 0.5) * batch, self.horizon_steps * batch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        step, rank = self.trainer.global_step, self.trainer.global_rank
        rate = self.learning_rate_at(step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        # Dropout draws from (seed, step, rank), so a resumed step draws what it would have drawn.
        torch.manual_seed(int(hash_words(_DROPOUT, self.seed, step, batch_idx, rank)[0] >> 1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self._losses(self._logits(batch["image"]), batch, self.label_smoothing)
        return (losses * batch["weight"]).mean()

    def _logits(self, images: Tensor) -> Tensor:
        """Float32 (B, K), whatever the precision of the weights."""
        dtype = next(self.model.parameters()).dtype  # not float32 under bf16-true and the like
        return self.model(images.to(dtype=dtype, memory_format=self._image_format)).float()

    def _losses(self, logits: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """The loss of each image, (B,). Under softmax, several labels share the target evenly."""
        target = batch.get("target")
        if self.loss == "sigmoid":
            dense = F.one_hot(batch["label"], logits.shape[1]).float() if target is None else target
            return F.binary_cross_entropy_with_logits(logits, dense, reduction="none").sum(1)
        wanted = batch["label"] if target is None else target / target.sum(1, keepdim=True)
        return F.cross_entropy(logits, wanted, reduction="none", label_smoothing=label_smoothing)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(self.val_accuracy, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(self.test_accuracy, batch)

    def _evaluate(self, accuracy: ExactAccuracy, batch: Batch) -> None:
        logits = self._logits(batch["image"])
        labels = batch["label"]
        if "target" in batch:  # several labels: any of them is right, so the highest ranked counts
            labels = logits.masked_fill(batch["target"] == 0, -torch.inf).argmax(1)
        accuracy.update(logits, labels, self._losses(logits, batch), batch["weight"])

    def on_validation_epoch_end(self) -> None:
        self._close_evaluation("val", self.val_accuracy, len(self.images.val_ids))

    def on_test_epoch_end(self) -> None:
        test_index = self.images.test_index
        self._close_evaluation("test", self.test_accuracy, len(test_index) if test_index is not None else 0)

    def _close_evaluation(self, split: str, accuracy: ExactAccuracy, num_images: int) -> None:
        self.results[split] = {**accuracy.compute(), "step": self.trainer.global_step}
        accuracy.reset()
        assert self.results[split]["num_images"] == num_images, "every image must be counted once"

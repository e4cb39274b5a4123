"""ImageClassifier: the one LightningModule, for every architecture."""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from vitlight.cost import count_params
from vitlight.data.datamodule import ShardedImages
from vitlight.data.hashing import hash_word
from vitlight.messages import say
from vitlight.models import arch_family, build_model, set_activation_checkpointing
from vitlight.training.accuracy import ExactAccuracy
from vitlight.training.clipping import clip_adaptively
from vitlight.training.ema import check_average, take_raw_weights
from vitlight.training.evaluation_sets import SetScores
from vitlight.training.losses import Loss, check_loss, image_losses
from vitlight.training.memory_format import MemoryFormat, choose_memory_format
from vitlight.training.meta_network import network_on_meta
from vitlight.training.network_parts import set_head_bias
from vitlight.training.optim import Optimizer
from vitlight.training.position import axes_at, check_position, put_counters
from vitlight.training.pretrained import check_weights_settings, load_pretrained, resize_to_fit
from vitlight.training.rollback import check_rollback
from vitlight.training.schedule import Duration, Schedule

__all__ = ["ImageClassifier"]

Batch = dict[str, Any]
_DROPOUT = 21


def _seed_generators(seed: int, device: torch.device) -> None:
    """What torch.manual_seed does for this device. For those that were never used it also notes the call stack, which
    takes 0.5 CPU-ms in the depth of a training loop."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class ImageClassifier(pl.LightningModule):
    """Trains and evaluates one architecture on one set of images.

    Where a run stands is one number, the optimizer step: data, schedule, random numbers and counters follow from it.

    Args:
        arch: The one size axis, for example `vit_s16`, `coatnet_0`, `resnet50`; `vitlight models` lists them.
        num_classes: Outputs; linked to `data.num_classes`.
        image_size: Pixels of a side; linked to `data.image_size`.
        in_channels: Linked to `data.channels`.
        duration: How long to train.
        optimizer: Which one, and its settings.
        schedule: Of the learning rate, as a function of samples seen.
        loss: `softmax` cross-entropy, or a binary cross-entropy for each class, for images that may have several labels:
            `sigmoid` their sum, `sigmoid_mean` their mean.
        label_smoothing: Part of the target spread evenly over all classes, in [0, 1); training only.
        head_bias_init: What the classifier's biases start at instead of 0: with a sigmoid loss, about the logarithm of a
            class's share, so that the first steps needn't find it (big_vision: -6.9 for 1,000 classes, -10 for 21,000).
        model_options: Further fields of the architecture's config, for example `{drop_path_rate: 0.1}`.
        compile: Compile the network with torch.compile.
        memory_format: Order of the network's maps and kernels in memory; `auto` takes what was measured to be fastest for
            the architecture, device and precision.
        activation_checkpointing: Keep only what enters each block for the backward pass, and compute the rest again: less
            memory for about a third more work, with the same gradients.
        gradient_compression: `bf16` sends the gradients between the ranks in bfloat16: half the bytes, and rounded sums.
        weights: What to start from instead of fresh weights: a file, a run directory, a URL or `hf-hub:ORG/NAME`. Position
            embeddings and the like are resized to `image_size`. A resumed run doesn't read it.
        weights_digest: What the content of `weights` must be; null: whatever it is when the run starts.
        weights_layout: Whose names the tensors have: `timm`, `google`, `huggingface`, `vitlight`, or `auto`: seen from them.
        weights_head: `load` the classifier too, or leave it `fresh`, as for other classes.
        ema_decay: Evaluate an exponential moving average of the weights that keeps this part of itself at every optimizer
            step, in (0, 1); null: the weights themselves.
        ema_warmup: Let that average start faster: min(ema_decay, (1 + t) / (10 + t)) after t steps.
        rollback_lr_factor: Where the run diverges, go back to its last good checkpoint, once, and train on with the
            learning rate times this, in (0, 1); null: the run ends.
        seed: Of weights and dropout; linked to `seed_everything`.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int,
        image_size: int,
        in_channels: int = 3,
        duration: Duration = Duration(),  # noqa: B008  frozen
        optimizer: Optimizer = Optimizer(),  # noqa: B008  frozen
        schedule: Schedule = Schedule(),  # noqa: B008  frozen
        loss: Loss = "softmax",
        label_smoothing: float = 0.0,
        head_bias_init: float | None = None,
        model_options: dict[str, Any] | None = None,
        compile: bool = False,
        memory_format: MemoryFormat = "auto",
        activation_checkpointing: bool = False,
        gradient_compression: Literal["none", "bf16"] = "none",
        weights: str | None = None,
        weights_digest: str | None = None,
        weights_layout: Literal["auto", "timm", "google", "huggingface", "vitlight"] = "auto",
        weights_head: Literal["load", "fresh"] = "load",
        ema_decay: float | None = None,
        ema_warmup: bool = False,
        rollback_lr_factor: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_average(ema_decay, ema_warmup)
        check_rollback(rollback_lr_factor)
        self.ema_decay, self.ema_warmup, self.rollback_lr_factor = ema_decay, ema_warmup, rollback_lr_factor
        self.rollbacks: list[dict[str, Any]] = []  # as `note_rollback` writes them
        self.logit_sum = torch.zeros(())  # of the latest training batch: finite as long as every logit is
        check_loss(loss, label_smoothing)
        check_weights_settings(weights, weights_digest, weights_layout, weights_head, head_bias_init)
        self.weights, self.weights_digest = weights, weights_digest
        self.weights_layout, self.weights_head = weights_layout, weights_head
        self.arch, self.family = arch, arch_family(arch)
        self.duration, self.optimizer, self.schedule = duration, optimizer, schedule
        self.loss, self.label_smoothing, self.seed = loss, label_smoothing, seed
        torch.manual_seed(seed)
        self.model = build_model(
            arch, num_classes=num_classes, image_size=image_size, in_channels=in_channels, **(model_options or {})
        )
        if head_bias_init is not None:
            set_head_bias(self.model, head_bias_init)
        self.num_params = count_params(self.model)
        self.forward_macs = network_on_meta(arch, num_classes, image_size, in_channels, model_options)[1]
        self.memory_format, self._image_format = memory_format, torch.preserve_format
        self.gradient_compression = gradient_compression
        set_activation_checkpointing(self.model, activation_checkpointing)
        if compile:
            self.model.compile(dynamic=False)  # batches have one size in training and one in evaluation
        self.val_accuracy, self.test_accuracy = ExactAccuracy(num_classes), ExactAccuracy(num_classes)
        self.set_scores = SetScores()
        self.results: dict[str, dict[str, float | int]] = {}
        self.start_step = 0
        self.origin_step: int | None = None  # at which the run takes over a checkpoint of another run

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # Lightning notes each hook's name here, 40 times a step
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

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
        if self._image_format != torch.preserve_format and not isinstance(self.model, FSDPModule):
            self.model.to(memory_format=self._image_format)  # type: ignore[call-overload]
        if stage == "fit":
            if self.weights is not None:
                given = (self.weights, self.weights_digest, self.weights_layout, self.weights_head)
                line = load_pretrained(self.model, *given)
                if self.trainer.is_global_zero:
                    say(line)
            self.images.start_step, self.images.num_steps = self.start_step, self.horizon_steps
            warning = self.schedule.unreached_peak(self.horizon_steps * self.images.plan.global_batch_size)
            if warning is not None and self.trainer.is_global_zero:
                say(f"vitlight: {warning}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer.build(self.model)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Units one by one where asked for, then all gradients together; once an optimizer step, loss scale undone."""
        if self.optimizer.adaptive_clip is not None:
            clip_adaptively(self.model, self.optimizer.adaptive_clip)
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Then drop the gradients: Lightning would let them stand through the next forward pass, and take that memory."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: `optimizer_step` has done it."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vitlight"] = {
            "step": self.trainer.global_step,
            "plan_digest": self.images.plan.digest,
            "horizon_samples": self.horizon_steps * self.images.plan.global_batch_size,
            "rollbacks": self.rollbacks,
        }
        # Lightning's own loop counters speak of one process's epochs and loaders; the step says it all.
        checkpoint.pop("loops", None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["vitlight"]
        if self.trainer.training:
            taken_over = state["step"] == self.origin_step
            check_position(state, self.images.plan, None if taken_over else self.horizon_steps)
        self.start_step = self.images.start_step = state["step"]
        self.rollbacks = self.rollbacks or state["rollbacks"]
        if self.trainer.training:
            take_raw_weights(checkpoint)
        else:
            resize_to_fit(self.model, checkpoint["state_dict"], "model.")
        put_counters(self.trainer, self.start_step)

    def learning_rate_at(self, step: int) -> float:
        """The rate of optimizer step `step` (from 0): the schedule at the middle of its batch."""
        batch = self.images.plan.global_batch_size
        peak = self.optimizer.lr * math.prod(rollback["lr_factor"] for rollback in self.rollbacks)
        return peak * self.schedule.factor((step + 0.5) * batch, self.horizon_steps * batch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        step, rank = self.trainer.global_step, self.trainer.global_rank
        rate = self.learning_rate_at(step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        # Dropout draws from (seed, step, rank), so a resumed step draws what it would have drawn.
        part = batch_idx % self.trainer.accumulate_grad_batches  # the number itself starts anew in a resumed process
        _seed_generators(hash_word(_DROPOUT, self.seed, step, part, rank) >> 1, self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self._logits(batch["image"])
        self.logit_sum = logits.detach().sum()
        losses = image_losses(logits, batch["label"], batch.get("target"), self.loss, self.label_smoothing)
        return (losses * batch["weight"]).mean()

    def _logits(self, images: Tensor) -> Tensor:
        """Float32 (B, K), whatever the precision of the weights."""
        dtype = next(self.model.parameters()).dtype  # not float32 under bf16-true and the like
        return self.model(images.to(dtype=dtype, memory_format=self._image_format)).float()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(self.val_accuracy, batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if (opened := self.images.set_of_loader(dataloader_idx)) is None:
            self._evaluate(self.test_accuracy, batch)
        else:
            self.set_scores.update(opened, self._logits(batch["image"]), batch["weight"], batch_idx, self.trainer)

    def _evaluate(self, accuracy: ExactAccuracy, batch: Batch) -> None:
        logits = self._logits(batch["image"])
        labels = batch["label"]
        if "target" in batch:  # several labels: any of them is right, so the highest ranked counts
            labels = logits.masked_fill(batch["target"] == 0, -torch.inf).argmax(1)
        losses = image_losses(logits, batch["label"], batch.get("target"), self.loss)
        accuracy.update(logits, labels, losses, batch["weight"])

    def on_validation_epoch_end(self) -> None:
        self._close_evaluation("val", self.val_accuracy, len(self.images.val_ids))

    def on_test_epoch_end(self) -> None:
        if self.images.test_index is not None:
            self._close_evaluation("test", self.test_accuracy, len(self.images.test_index))
        self.set_scores.close(self.trainer.global_step, self.images.image_size)

    def _close_evaluation(self, split: str, accuracy: ExactAccuracy, num_images: int) -> None:
        self.results[split] = {**accuracy.compute(), "step": self.trainer.global_step}
        accuracy.reset()
        assert self.results[split]["num_images"] == num_images, "every image must be counted once"


# Lightning asks for its parameters at every step.
ImageClassifier.training_step.__signature__ = inspect.signature(ImageClassifier.training_step)  # type: ignore[attr-defined]

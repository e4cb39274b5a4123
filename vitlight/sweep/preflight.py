"""Whether the cells of a sweep fit the memory of their devices, found on shapes alone before any of them runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vitlight.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jsonargparse import Namespace

    from vitlight.sweep.plan import PlannedCell

__all__ = ["MemoryCheck", "Need", "local_gpu_bytes", "num_devices"]

DeviceType = Literal["cpu", "cuda"]
# Names of precisions that cost.memory knows, by the other names that Lightning takes.
_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "None": "32-true"}
_KNOWN = ("32", "32-true", "bf16-mixed", "16-mixed", "bf16-true")
_HALF_BYTES, _SINGLE_BYTES = 2, 4


@dataclass(frozen=True)
class Need:
    """What one device of a cell takes: bytes that its tensors hold at the worst moment, with so many images at once."""

    peak_bytes: int
    batch_size: int


class MemoryCheck:
    """`cost.memory.estimate_memory` for cells; what has the same shapes is estimated once, in about a second."""

    def __init__(self, device_type: DeviceType | None = None) -> None:
        """`device_type`: of all cells; None: cpu where `trainer.accelerator` says so, else cuda."""
        self._device_type = device_type
        self._known: dict[str, Need | None] = {}

    def need(self, planned: PlannedCell) -> Need | None:
        """None where it can't be told: a precision or strategy that isn't estimated, a batch that can't train."""
        settings = planned.run.settings
        if settings is None:
            return None
        model, trainer = settings.model, settings.trainer
        world = num_devices(planned) * (trainer.accumulate_grad_batches or 1)
        batch_size = planned.run.global_batch_size // world
        precision = _PRECISIONS.get(str(trainer.precision), str(trainer.precision))
        if precision not in _KNOWN or batch_size < 1 or str(trainer.strategy) not in ("auto", "ddp", "None"):
            return None
        device_type = self._device_type or ("cpu" if trainer.accelerator == "cpu" else "cuda")
        bytes_a_weight = _state_bytes(vars(model.optimizer), _weight_bytes(precision))
        bytes_a_weight += _SINGLE_BYTES if model.ema_decay is not None else 0
        shape = {
            "arch": model.arch,
            "num_classes": settings.data.num_classes,
            "image_size": settings.data.image_size,
            "in_channels": settings.data.channels,
            "options": model.model_options or {},
        }
        how = (batch_size, precision, bool(model.activation_checkpointing), device_type, world > 1)
        key = json.dumps([shape, how, bytes_a_weight], sort_keys=True, default=str)
        if key not in self._known:
            self._known[key] = _estimate(shape, *how, bytes_a_weight)
        return self._known[key]


def num_devices(planned: PlannedCell) -> int:
    """Devices that the cell trains on, over all nodes. What is left open (`auto`, -1) is this machine's GPUs, or 1."""
    settings = planned.run.settings
    if settings is None:
        return 1
    trainer = settings.trainer
    return _devices_a_node(trainer) * int(trainer.num_nodes or 1)


def local_gpu_bytes() -> int | None:
    """Memory of this machine's smallest GPU, None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))


def _devices_a_node(trainer: Namespace) -> int:
    value = trainer.devices
    if isinstance(value, list | tuple):
        return len(value)
    text = str(value)
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    if text.isdigit():
        return int(text)
    import torch

    return 1 if trainer.accelerator == "cpu" else max(1, torch.cuda.device_count())


def _weight_bytes(precision: str) -> int:
    return _HALF_BYTES if precision == "bf16-true" else _SINGLE_BYTES


def _state_bytes(optimizer: Mapping[str, Any], weight_bytes: int) -> int:
    """What the optimizer keeps for a weight. Adafactor's second moments, a row and a column each, count for nothing."""
    momentum = _HALF_BYTES if optimizer["momentum_dtype"] == "bfloat16" else weight_bytes
    name = optimizer["name"]
    if name == "sgd":
        return 0 if optimizer["momentum"] == 0.0 else momentum
    return momentum if name == "adafactor" else momentum + weight_bytes


def _estimate(
    shape: dict[str, Any],
    batch_size: int,
    precision: Any,
    activation_checkpointing: bool,
    device_type: DeviceType,
    keep_gradients: bool,
    bytes_a_weight: int,
) -> Need | None:
    """The estimate knows two optimizers; what another keeps stands all through the step, so it is exchanged."""
    from vitlight.cost.memory import Optimizer, estimate_memory
    from vitlight.training.meta_network import network_to_plan

    network, _ = network_to_plan(**shape)
    weight_bytes = _weight_bytes(precision)
    known: Optimizer = "adamw" if bytes_a_weight >= 2 * weight_bytes else "sgd"
    try:
        estimate = estimate_memory(
            network,
            shape["image_size"],
            batch_size,
            precision,
            known,
            activation_checkpointing,
            device_type,
            keep_gradients,
        )
    except InputError:
        return None
    weights = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    counted = (2 if known == "adamw" else 1) * weight_bytes
    return Need(estimate.peak_bytes + weights * (bytes_a_weight - counted), batch_size)

"""FSDP2: weights, gradients and optimizer state split over the ranks, for models that don't fit one device."""

from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vitlight.errors import InputError

__all__ = ["ShardedStrategy", "share_buffers"]

_CONTAINERS = (nn.ModuleList, nn.Sequential)


class ShardedStrategy(ModelParallelStrategy):
    """torch's fully_shard over all ranks, block by block: a rank holds the whole weights of one block at a time.

    Checkpoints are those of one process, whole in one file, so a run may go on with another strategy or number of ranks.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **arguments)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.world_size
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        assert self.accelerator is not None and self.model is not None
        self.accelerator.setup(trainer)
        fits = trainer.state.fn == TrainerFn.FITTING
        if fits:
            _check_settings(self.model)
        self.model = self.precision_plugin.convert_module(self.model)
        if not isinstance(self.model.model, FSDPModule):
            if fits and self._layer_sync is not None:
                self.model = self._layer_sync.apply(self.model)
            self._shard(self.model)
        self.model_to_device()
        self.barrier()
        if fits:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if fits:
            _optimizers_to_device(self.optimizers, self.root_device)

    def _shard(self, module: Any) -> None:
        network: nn.Module = module.model
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # the only one it takes
        reduced = torch.bfloat16 if module.gradient_compression == "bf16" else None
        options: dict[str, Any] = {
            "mesh": self.device_mesh["data_parallel"],
            "mp_policy": MixedPrecisionPolicy(reduce_dtype=reduced),
        }
        for block in _blocks(network):
            fully_shard(block, **options)
        fully_shard(network, **options)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights, on rank 0; empty on the others. Called by all."""
        assert self.lightning_module is not None
        return self._whole(self.lightning_module.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        mine = self.lightning_module.state_dict()
        state = {name: _split_as(mine.get(name), value) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole state, named as by one process, on rank 0; empty on the others. Called by all."""
        return self._whole(optimizer.state_dict())

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            split = {
                number: {name: _split_as(weight, value) for name, value in state["state"][number].items()}
                for number, weight in zip(numbers, weights, strict=True)
                if number in state["state"]
            }
            optimizer.load_state_dict({**state, "state": split})
            _optimizers_to_device([optimizer], self.root_device)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        # Not ModelParallelStrategy's, which takes an optimizer's numbers for those of the model's parameters in order.
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        whole = _gather(state)
        return whole if self.is_global_zero else {}

    def on_validation_start(self) -> None:
        share_buffers(self.lightning_module)

    def on_test_start(self) -> None:
        share_buffers(self.lightning_module)


def _check_settings(module: Any) -> None:
    """InputError where something in a training step needs a weight whole."""
    optimizer = module.optimizer
    for setting, is_set in {
        "model.compile=true": module.model._compiled_call_impl is not None,
        f"model.ema_decay={module.ema_decay}": module.ema_decay is not None,
        f"model.optimizer.name={optimizer.name}": optimizer.name not in ("adamw", "sgd"),
        f"model.optimizer.momentum_dtype={optimizer.momentum_dtype}": optimizer.momentum_dtype != "float32",
        f"model.optimizer.adaptive_clip={optimizer.adaptive_clip}": optimizer.adaptive_clip is not None,
    }.items():
        if is_set:
            raise InputError(f"{setting} can't be had with trainer.strategy=fsdp2, which splits the weights; use ddp")


def _gather(state: Any) -> Any:
    """The same tree with whole tensors on the CPU instead of parts."""
    if isinstance(state, dict):
        return {name: _gather(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_gather(value) for value in state)
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    return state.detach().cpu() if isinstance(state, Tensor) else state


def _split_as(weight: Tensor | None, value: Any) -> Any:
    """A whole tensor in the parts that a weight of its shape is in; anything else as it is."""
    if not isinstance(weight, DTensor) or not isinstance(value, Tensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.contiguous().to(weight.device), weight.device_mesh, weight.placements)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The residual blocks of a network: what its `blocks` and `stages` are made of."""
    for name, child in network.named_children():
        if name in ("blocks", "stages") and isinstance(child, _CONTAINERS):
            for part in child:
                inner = list(_blocks(part)) if not isinstance(part, _CONTAINERS) else list(part)
                yield from inner or [part]
        else:
            yield from _blocks(child)


def share_buffers(module: nn.Module | None) -> None:
    """Give every rank the buffers of rank 0: what evaluation reads, and what a checkpoint keeps."""
    assert module is not None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)

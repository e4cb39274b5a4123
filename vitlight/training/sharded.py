"""FSDP2: weights, gradients and optimizer state split over the ranks, for models that don't fit one device."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch._dynamo
import torch.distributed
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from vitlight.models.checkpoint_folder import is_checkpoint_folder, map_tensors, read_parts, read_rest
from vitlight.training.checkpoint_io import CheckpointWriter
from vitlight.training.ema import RAW
from vitlight.training.parts import empty_like_part, split_as

__all__ = ["ShardedStrategy", "share_buffers"]

_CONTAINERS = (nn.ModuleList, nn.Sequential)


class ShardedStrategy(ModelParallelStrategy):
    """torch's fully_shard over all ranks, block by block: a rank holds the whole weights of one block at a time.

    A checkpoint is a folder with a part from every rank or, with `saves_parts` off, one file that rank 0 writes. Names and
    values are those of one process, and a run may go on from it with another strategy or number of ranks.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **arguments)
        self.saves_parts = True
        self._save_group: torch.distributed.ProcessGroup | None = None

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
            if self.saves_parts and self._save_group is None:  # a thread exchanges there what it has written
                self._save_group = torch.distributed.new_group(backend="gloo", timeout=self._timeout)

    def _shard(self, module: Any) -> None:
        network: nn.Module = module.model
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # the only one it takes
        reduced = torch.bfloat16 if module.gradient_compression == "bf16" else None
        options: dict[str, Any] = {
            "mesh": self.device_mesh["data_parallel"],
            "mp_policy": MixedPrecisionPolicy(reduce_dtype=reduced),
        }
        blocks = list(_blocks(network))
        if network._compiled_call_impl is not None:
            network._compiled_call_impl = None
            _compile_each(blocks or [network])
        for block in blocks:
            fully_shard(block, **options)
        fully_shard(network, **options)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This rank's part of the weights."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """This rank's part of the state, numbered as by one process."""
        return optimizer.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        writer = self.checkpoint_io
        assert storage_options is None and isinstance(writer, CheckpointWriter)
        if self._save_group is not None:
            writer.save_parts(checkpoint, Path(filepath), self._save_group)
            return
        whole = map_tensors(checkpoint, self._gather)
        if self.is_global_zero:
            writer.save_checkpoint(whole, filepath)

    def _gather(self, place: str, tensor: Tensor) -> Tensor | None:
        """The whole tensor on rank 0, on the CPU if it was split; called by all."""
        if not isinstance(tensor, DTensor):
            return tensor
        whole: Tensor = tensor.full_tensor().detach()
        return whole.cpu() if self.is_global_zero else None

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Of a folder each rank reads its own part alone; in an evaluation neither optimizer state nor what a run goes on
        from."""
        path = Path(checkpoint_path)
        if not is_checkpoint_folder(path):
            # Not ModelParallelStrategy's, which takes an optimizer's numbers for those of the model's parameters in order.
            return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)
        assert self.lightning_module is not None
        rest = read_rest(path)
        mine = self.lightning_module.state_dict()
        weights = {f"{group}/{name}": weight for group in ("state_dict", RAW) for name, weight in mine.items()}
        if self.lightning_module.trainer.state.fn != TrainerFn.FITTING:
            rest = {name: each for name, each in rest.items() if name not in ("optimizer_states", RAW)}
        for index, state in enumerate(rest.get("optimizer_states", ())):
            for number, weight in _numbered(self.optimizers[index], state):
                names = state["state"].get(number, ())
                weights |= {f"optimizer_states/{index}/state/{number}/{name}": weight for name in names}
        return read_parts(path, rest, lambda place, whole: empty_like_part(weights.get(place), whole))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        mine = self.lightning_module.state_dict()
        state = {name: split_as(mine.get(name), value) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            split = {
                number: {name: split_as(weight, value) for name, value in state["state"][number].items()}
                for number, weight in _numbered(optimizer, state)
                if number in state["state"]
            }
            optimizer.load_state_dict({**state, "state": split})
            _optimizers_to_device([optimizer], self.root_device)

    def on_validation_start(self) -> None:
        share_buffers(self.lightning_module)

    def on_test_start(self) -> None:
        share_buffers(self.lightning_module)


def _compile_each(blocks: Sequence[nn.Module]) -> None:
    """Compile what each block computes, and not the hooks around it, which gather its weights. Blocks that differ in nothing
    but weights share a graph."""
    # A graph for each mode of each block, where their rates of stochastic depth differ. Past torch's limit of 8 for one
    # function the rest would run uncompiled.
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4 * len(blocks))
    for block in blocks:
        cast(Any, block).forward = torch.compile(block.forward, dynamic=False)


def _numbered(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> Iterator[tuple[int, Tensor]]:
    """The weights of an optimizer with their numbers in a saved state of it."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    yield from zip(numbers, weights, strict=True)


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

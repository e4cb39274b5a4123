"""What activation checkpointing adds to a backward pass."""

from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vitlight.cost.trace import checkpoint_blocks, meta_image, to_meta

__all__ = ["recomputed_macs"]


def recomputed_macs(model: nn.Module, image_size: int) -> int:
    """Multiply-adds an image of the forward work that a backward pass does again when blocks are checkpointed.

    Stochastic depth is off, so that no block is skipped. The model is left as it is.
    """
    batch_size = 2  # batch norm refuses to train on a single value a channel
    with_checkpoints, without = (_backward_macs(model, image_size, batch_size, enabled) for enabled in (True, False))
    return (with_checkpoints - without) // batch_size


def _backward_macs(model: nn.Module, image_size: int, batch_size: int, checkpointing: bool) -> int:
    meta = to_meta(model).train()
    checkpoint_blocks(meta, checkpointing)
    for module in meta.modules():
        if type(module).__name__ == "DropPath":  # ours has a rate, timm's a drop_prob
            module.rate = module.drop_prob = 0.0  # type: ignore[assignment]
    loss = meta(meta_image(model, image_size, batch_size=batch_size)).sum()
    with _Macs() as counter:
        loss.backward()
    return counter.macs


class _Macs(TorchDispatchMode):
    """Adds up the multiply-adds of the operators that run inside, by torch's formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.macs += formula(*args, **(kwargs or {}), out_val=output) // 2
        return output

"""How the ranks of a run keep one model: a copy on each (DDP), or each a part of it (FSDP2)."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from vitlight.errors import InputError
from vitlight.training.sharded import ShardedStrategy, share_buffers

__all__ = ["ReplicatedStrategy", "choose_strategy", "launched_world"]


def launched_world(arguments: Mapping[str, Any]) -> dict[str, int]:
    """The Trainer's `devices` and `num_nodes` as torchrun started them, which an elastic world changes from attempt to
    attempt; empty without torchrun. InputError where the arguments say otherwise."""
    if not TorchElasticEnvironment.detect() or "LOCAL_WORLD_SIZE" not in os.environ:
        return {}
    num_ranks, num_local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if num_ranks % num_local:
        raise InputError(
            f"torchrun started {num_ranks} ranks, not the same number on every node; {num_local} on this one"
        )
    world = {"devices": num_local, "num_nodes": num_ranks // num_local}
    for name, unset in (("devices", ("auto", -1, "-1")), ("num_nodes", (1,))):
        given = arguments.get(name)
        if given is not None and given not in unset and str(given) != str(world[name]):
            raise InputError(
                f"trainer.{name}={given}, but torchrun started {world['num_nodes']} nodes of {num_local} processes; leave "
                f"trainer.{name} out: it follows"
            )
    return world


def choose_strategy(arguments: dict[str, Any]) -> str | Strategy:
    """What the Trainer's arguments say of several ranks: ours for `auto`, `ddp` and `fsdp2`, else as Lightning has it."""
    wanted = arguments.get("strategy") or "auto"
    if wanted == "auto":
        # Lightning knows how many devices `auto`, -1, "0,1" and the like are, and which ones take part in DDP.
        world = {name: arguments[name] for name in ("accelerator", "devices", "num_nodes") if arguments.get(name)}
        if not isinstance(_AcceleratorConnector(**world).strategy, DDPStrategy):
            return "auto"
        wanted = "ddp"
    if wanted == "ddp":
        return ReplicatedStrategy()
    return ShardedStrategy() if wanted == "fsdp2" else wanted


class ReplicatedStrategy(DDPStrategy):
    """DDP whose sums come out the same however often the run was resumed, and which sends buffers only where they count.

    Every parameter takes part in every step, so DDP needs no search for unused ones and no static graph. Torch 2.13's
    static graph would also fail with accumulated batches (its first backward pass may not skip the reduction).
    """

    def __init__(self, **arguments: Any) -> None:
        # Only evaluation reads the running statistics of batch norms, and a run keeps those of rank 0: they are sent
        # before each evaluation instead of before each step.
        is_renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # torch 2.13
        arguments["forward_sync_buffers" if is_renamed else "broadcast_buffers"] = False
        super().__init__(gradient_as_bucket_view=True, **arguments)

    def configure_ddp(self) -> None:
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        if self.lightning_module.gradient_compression == "bf16":  # type: ignore[union-attr]
            # Torch's hook asks for NCCL.
            self.model.register_comm_hook(None, _sum_in_bf16 if self.root_device.type == "cpu" else bf16_compress_hook)
        self._settle_buckets(self.model)

    @staticmethod
    def _settle_buckets(ddp: DistributedDataParallel) -> None:
        """Let DDP make its final buckets before the first step.

        It lays them out anew after the first backward pass of a process, in the order in which gradients arrived, and
        where a gradient lies in its bucket decides in which order more than two ranks are summed. Without this, the first
        step after a resume rounds otherwise than it did in an uninterrupted run (seen with 3 ranks).
        """
        module = ddp.module
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        module.forward = lambda: _sum_of(parameters) * 0
        try:
            ddp().backward()
        finally:
            del module.forward
        for parameter in parameters:
            parameter.grad = None

    def on_validation_start(self) -> None:
        share_buffers(self.lightning_module)

    def on_test_start(self) -> None:
        share_buffers(self.lightning_module)


def _sum_in_bf16(state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The mean of a bucket over the ranks, sent and summed in bfloat16."""
    gradients = bucket.buffer()
    rounded = (gradients / torch.distributed.get_world_size()).to(torch.bfloat16)
    torch.distributed.all_reduce(rounded)
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(gradients.copy_(rounded))
    return done


def _sum_of(parameters: list[nn.Parameter]) -> torch.Tensor:
    """Its backward pass reaches the last parameter first, about as a network's does."""
    total = torch.zeros((), device=parameters[0].device)
    for parameter in parameters:
        total = total + parameter.sum()
    return total

"""Batch norm over the images of all ranks (`trainer.sync_batchnorm`), also on CPUs, where torch's own can't."""

from typing import Any

import torch
import torch.distributed
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitlight.errors import InputError

__all__ = ["SharedBatchNorm"]


class SharedBatchNorm(TorchSyncBatchNorm):
    """Makes the batch norms of a model take the statistics of a micro-batch over all ranks, and back.

    device_type: "cpu", or one for which torch.nn.SyncBatchNorm has kernels. InputError where a norm is of a kind whose
    further work, such as timm's activation in the norm, the exchange would drop.
    """

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type

    def apply(self, model: nn.Module) -> nn.Module:
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        for norm in norms:
            if type(norm) is not nn.BatchNorm2d:
                raise InputError(f"trainer.sync_batchnorm=true can't be done for the model's {type(norm).__name__}")
        if self.device_type != "cpu":
            return super().apply(model)
        for norm in norms:
            norm.__class__ = _CpuSharedBatchNorm2d
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        if self.device_type != "cpu":
            return super().revert(model)
        for norm in model.modules():
            if isinstance(norm, _CpuSharedBatchNorm2d):
                norm.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
        return model


class _CpuSharedBatchNorm2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W), normalised in training by mean and variance over the batches of all ranks."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        x = input.float()
        count = torch.full((1,), x.numel() / x.shape[1], device=x.device)
        total, count = _AllReduceSum.apply(torch.cat([x.sum((0, 2, 3)), count])).split([x.shape[1], 1])
        mean = total / count
        centred = x - mean[:, None, None]
        variance = _AllReduceSum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None]).to(input.dtype)


class _AllReduceSum(torch.autograd.Function):
    """The sum over all ranks. Every rank's result depends on every rank's term, so the gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, term: Tensor) -> Tensor:
        total = term.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total

"""A network's features of many images: computed by all ranks, gathered by the first, equal for any number of ranks."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vitlight.data.batches import Batch
from vitlight.models.heads import classifier_inputs, classifier_layers

__all__ = ["FeatureSet", "extract_features", "feature_width"]


@dataclass(frozen=True)
class FeatureSet:
    """values: (n, D) on the host; labels: int64 (n,), each image's only or first one."""

    values: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        assert len(self.values) == len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_nonfinite(self) -> int:
        """Images whose features are not all finite."""
        return sum(int((~part.isfinite().all(1)).sum()) for part in self.values.split(1 << 14))


def feature_width(network: nn.Module) -> int:
    """D, the features of one image: what the classifier takes, of several classifiers the sum."""
    return sum(int(cast(Tensor, layer.weight).shape[1]) for layer in classifier_layers(network))


@torch.no_grad()
def extract_features(
    network: nn.Module,
    loader: DataLoader[Batch],
    num_images: int,
    prepare: Callable[[Batch], Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    computing: Callable[[], AbstractContextManager[object]] = nullcontext,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """What enters the classifier of `network`, (num_images, D) on the host, of several classifiers side by side; on other
    ranks than the first (0, 0).

    Every rank calls it with its own `loader`, one of `ShardedImages.evaluation_loader`. A batch holds the same images on
    any number of ranks, so its features come out the same. prepare: a batch of the loader -> images (B, C, H, W) as the
    network takes them, on its device. computing: entered for each forward pass, such as autocast. advance: called with the
    number of images that are new. The network is in evaluation mode meanwhile.
    """
    rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if _is_distributed() else (0, 1)
    weights_dtype = next(network.parameters()).dtype  # not float32 under bf16-true and the like
    was_training = {module: module.training for module in network.modules()}
    network.eval()
    values, done = torch.empty(0, 0, dtype=dtype), 0
    try:
        with classifier_inputs(network) as caught:
            for batch in loader:
                caught.clear()
                images = prepare(batch).to(weights_dtype)
                with computing():
                    network(images)
                blocks = _gather(torch.cat(caught, 1).to(dtype))
                for block in blocks:
                    if not len(values):
                        values = torch.empty(num_images, block.shape[1], dtype=dtype)
                    num_new = min(len(block), num_images - done)  # behind the last image batches are padded
                    values[done : done + num_new] = block[:num_new]
                    done += num_new
                    advance(num_new)
    finally:
        for module, mode in was_training.items():
            module.training = mode
    assert rank != 0 or done == num_images, f"{done} of {num_images} images over {num_ranks} ranks"
    return values


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gather(block: Tensor) -> list[Tensor]:
    """The blocks of all ranks in their order; on other ranks than the first none."""
    if not _is_distributed():
        return [block]
    is_first = dist.get_rank() == 0
    blocks = [torch.empty_like(block) for _ in range(dist.get_world_size())] if is_first else None
    dist.gather(block.contiguous(), blocks, dst=0)
    return blocks or []

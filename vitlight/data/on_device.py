"""What becomes of a batch between its loader and the network."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlight.data.batches import Batch
from vitlight.data.mixing import Mixing
from vitlight.data.normalize import Normalization

__all__ = ["finish_batch", "move_batch"]


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device. Copies from pinned memory to a GPU are begun, not awaited."""
    is_async = device.type not in ("cpu", "mps")
    return {
        name: value.to(device, non_blocking=is_async) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def finish_batch(
    batch: Batch, normalization: Normalization, mixing: Mixing, num_classes: int, *, is_multi_label: bool
) -> Batch:
    """Uint8 pixels -> normalised float32, mixed where the batch has draws for it; `target` float32 (B, K) where one label
    can't say it."""
    batch = {**batch, "image": normalization(batch["image"])}
    if is_multi_label or "mixing" in batch:
        target = F.one_hot(batch["label"], num_classes).float()
        target[batch["more_rows"], batch["more_labels"]] = 1.0
        batch["target"] = target
    if "mixing" in batch:
        batch["image"], batch["target"] = mixing.apply(batch["image"], batch["target"], batch["mixing"])
    return batch

"""What a loader's worker does: decode, crop and stack one batch. Imports neither lightning nor pandas, so it starts fast."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vitlight.data.augment import CropAndFlip, centre_box
from vitlight.data.decode import DecodeError, crop_and_resize, decode_image
from vitlight.data.index import ShardIndex
from vitlight.data.plan import BatchRequest
from vitlight.data.store import LocalStore
from vitlight.errors import InputError

__all__ = ["Batch", "ImageBatches"]

Batch = dict[str, Tensor]


class ImageBatches(Dataset[Batch]):
    """Decodes whole batches: maps a BatchRequest to images uint8 (B, C, S, S) in channels_last layout, labels int64 (B,)
    and weights float32 (B,), 0 where a row is padding.

    augmentation: how training crops are drawn; None cuts the centred square of `eval_crop` of the shorter side.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        size: int,
        channels: int,
        seed: int,
        augmentation: CropAndFlip | None,
        eval_crop: float,
    ) -> None:
        self.index = index
        self.store = LocalStore(index.shards)
        self.size, self.channels, self.seed = size, channels, seed
        self.augmentation, self.eval_crop = augmentation, eval_crop

    def decode(self, row: int) -> NDArray[np.uint8]:
        """The whole image (H, W, C) of an index row. Raises InputError naming shard and key where it can't be decoded."""
        index = self.index
        shard = int(index.shard[row])
        encoded = self.store.read(shard, int(index.offset[row]), int(index.size[row]))
        try:
            return decode_image(encoded, self.channels)
        except DecodeError as error:
            raise InputError(
                f"image {index.key(row)!r} in shard {index.shards[shard]} can't be decoded: {error}"
            ) from error

    def __getitem__(self, request: BatchRequest) -> Batch:
        batch_size = len(request.ids)
        images = torch.zeros(batch_size, self.size, self.size, self.channels, dtype=torch.uint8)
        real = request.ids >= 0
        labels = np.where(real, self.index.label[np.maximum(request.ids, 0)], 0)
        draws = None
        if self.augmentation is not None:
            draws = self.augmentation.draws(self.seed, request.epochs, self.index.key_hash[request.ids])
        for i, row in enumerate(request.ids):
            if row < 0:
                continue
            pixels = self.decode(int(row))
            height, width = pixels.shape[:2]
            if self.augmentation is None or draws is None:
                images[i] = crop_and_resize(pixels, centre_box(height, width, self.eval_crop), self.size)
                continue
            image = crop_and_resize(pixels, self.augmentation.box(height, width, draws[i]), self.size)
            images[i] = image.flip(1) if self.augmentation.is_flipped(draws[i]) else image
        return {
            "image": images.permute(0, 3, 1, 2),
            "label": torch.from_numpy(labels.astype(np.int64)),
            "weight": torch.from_numpy(real.astype(np.float32)),
        }

"""Decodes images for prediction, as evaluation does. Imports little, so that a loader's workers start fast."""

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitlight.data.decode import DecodeError, decode_image, resize_and_centre
from vitlight.data.store import Store

__all__ = ["EvaluationViews", "Item", "ViewRequest"]


class Item(NamedTuple):
    """One image: a file, or, where `shard` is given, `size` bytes at `offset` of that shard. error: why it can't be read,
    where that is known before. name: its path or, in a shard, its key; shard_name: for people, empty for a file."""

    name: str
    shard_name: str = ""
    shard: int | None = None
    offset: int = 0
    size: int = 0
    error: str | None = None


class ViewRequest(NamedTuple):
    """The images of a batch; None for a row of padding."""

    ids: tuple[Item | None, ...]


class EvaluationViews:
    """Decodes whole batches. Maps a ViewRequest for B images to

    image: uint8 (B, C, S, S) in channels_last layout, zeros where there is none; items: those of the request; errors: for
    each why it could not be read, or None.

    size, crop_fraction: as in `resize_and_centre`. store: reads the shards.
    """

    def __init__(self, size: int, channels: int, crop_fraction: float, store: Store) -> None:
        self.size, self.channels, self.crop_fraction, self.store = size, channels, crop_fraction, store

    def __getitem__(self, request: ViewRequest) -> dict[str, Any]:
        return self.load(request, torch.empty(len(request.ids), self.size, self.size, self.channels, dtype=torch.uint8))

    def load(self, request: ViewRequest, images: Tensor) -> dict[str, Any]:
        """The batch, with its pixels written to `images` (B, S, S, C)."""
        errors = [self._view(item, image) for item, image in zip(request.ids, images, strict=True)]
        return {"image": images.permute(0, 3, 1, 2), "items": request.ids, "errors": errors}

    def _view(self, item: Item | None, image: Tensor) -> str | None:
        """Write an image's view to `image` (S, S, C), or zeros and return why not."""
        error = None if item is None else item.error
        if item is not None and error is None:
            try:
                pixels = decode_image(self._read(item), self.channels)
                image.copy_(resize_and_centre(pixels, self.size, self.crop_fraction))
            except DecodeError as reason:
                error = f"can't be decoded: {reason}"
            except OSError as reason:
                error = f"can't be read: {reason.strerror or reason}"
            else:
                return None
        image.zero_()
        return error

    def _read(self, item: Item) -> bytes:
        if item.shard is not None:
            return self.store.read(item.shard, item.offset, item.size)
        with open(os.fsencode(item.name), "rb") as file:  # noqa: PTH123  a Path can't be made from bytes
            return file.read()

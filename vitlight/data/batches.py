"""What a loader's worker does: decode, crop and stack one batch. Imports neither lightning nor pandas, so it starts fast."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vitlight.data.augment import Augmentation
from vitlight.data.decode import DecodeError, decode_crop, decode_image, resize_and_centre
from vitlight.data.mixing import Mixing
from vitlight.data.plan import BatchRequest
from vitlight.data.shard_index import ShardIndex
from vitlight.data.store import Store
from vitlight.errors import InputError

__all__ = ["Batch", "ImageBatches", "ImageSource", "Located"]

Batch = dict[str, Any]
Int64 = NDArray[np.int64]

# A worker maps the index; what it has touched counts as its memory until it lets go of it: 36 bytes a sample.
_RELEASE_BATCHES = 32
_REMEMBERED_SHARDS = 4096


@dataclass(frozen=True)
class ImageSource:
    """An index and what reads its shards."""

    index: ShardIndex
    store: Store


@dataclass(frozen=True)
class Located:
    """One sample of a batch: where it lies, and its place in the batch."""

    place: int
    source: ImageSource
    row: int
    shard: int
    offset: int
    size: int

    def read(self) -> bytes:
        return self.source.store.read(self.shard, self.offset, self.size)

    def fault(self, error: DecodeError) -> str:
        index = self.source.index
        return f"image {index.key(self.row)!r} in shard {index.shards[self.shard]} can't be decoded: {error}"


class ImageBatches(Dataset[Batch]):
    """Decodes whole batches. Maps a BatchRequest for B images to

    image: uint8 (B, C, S, S) in channels_last layout; label: int64 (B,), the only or first label; weight: float32 (B,), 0
    where a row is padding or was skipped; more_rows, more_labels: int64 (L,), the other labels of multi-label images and the
    rows they belong to; mixing: float32 (B, M), the draws of MixUp and CutMix; skipped: faults of the images skipped.

    augmentation: of training images; None gives the evaluation view of `eval_crop`. skip_undecodable: an image that can't be
    decoded gets weight 0 and another image's pixels; otherwise it raises InputError, which names shard and key.
    """

    def __init__(
        self,
        sources: Sequence[ImageSource],
        *,
        size: int,
        channels: int,
        seed: int,
        augmentation: Augmentation | None,
        eval_crop: float,
        mixing: Mixing | None = None,
        skip_undecodable: bool = False,
    ) -> None:
        self.sources = tuple(sources)
        self.size, self.channels, self.seed = size, channels, seed
        self.augmentation, self.eval_crop, self.mixing = augmentation, eval_crop, mixing
        self.skip_undecodable = skip_undecodable
        self._first_id = np.cumsum([0, *(len(source.index) for source in self.sources)])
        self._batches_until_release = _RELEASE_BATCHES
        self._seen_shards: list[set[int]] = [set() for _ in self.sources]

    def __getitem__(self, request: BatchRequest) -> Batch:
        return self.load(request, torch.empty(len(request.ids), self.size, self.size, self.channels, dtype=torch.uint8))

    def load(self, request: BatchRequest, images: Tensor) -> Batch:
        """The batch, with its pixels written to `images` (B, S, S, C)."""
        located, labels, key_hash = self.locate(request.ids)
        weight = np.zeros(len(request.ids), np.float32)
        draws = None
        if self.augmentation is not None:
            draws = self.augmentation.draws(self.seed, request.epochs, key_hash, request.repeats)
        skipped: list[str] = []
        for sample in located:
            try:
                # With no allowance for damage, an image of a later epoch was decoded whole in the first, or the run stopped.
                is_sound = not self.skip_undecodable and request.epochs[sample.place] > 0
                images[sample.place] = self._view(
                    sample.read(), None if draws is None else draws[sample.place], is_sound
                )
                weight[sample.place] = 1.0
            except DecodeError as error:
                if not self.skip_undecodable:
                    raise InputError(sample.fault(error)) from error
                skipped.append(sample.fault(error))
        # Padding is black; in the place of a skipped image stands another, since batch statistics must not see a blank one.
        stand_in = images[int(np.argmax(weight))] if skipped and weight.any() else 0
        for place in np.flatnonzero(weight == 0).tolist():
            images[place] = stand_in
        batch = {
            "image": images.permute(0, 3, 1, 2),
            "label": torch.from_numpy(labels),
            "weight": torch.from_numpy(weight),
            "skipped": skipped,
            **self._more_labels(located),
        }
        if self.mixing is not None and self.augmentation is not None:
            drawn = self.mixing.draws(self.seed, request.step, request.epochs, key_hash, request.repeats)
            batch["mixing"] = torch.from_numpy(drawn)
        self._release()
        return batch

    def locate(self, ids: Int64) -> tuple[list[Located], Int64, NDArray[np.uint64]]:
        """Where the samples lie, their labels (B,) and key hashes (B,); those of padding are 0."""
        located: list[Located] = []
        labels, key_hash = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.uint64)
        source_of = np.searchsorted(self._first_id, ids, side="right") - 1  # -1 for padding
        for s, source in enumerate(self.sources):
            index = source.index
            places = np.flatnonzero(source_of == s)
            rows = ids[places] - self._first_id[s]
            shards = index.shard_of(rows)
            self._announce(s, set(shards.tolist()))
            labels[places], key_hash[places] = index.label[rows], index.key_hash[rows]
            columns = (places, rows, shards, index.offset[rows], index.size[rows])
            located += [
                Located(place, source, row, shard, offset, size)
                for place, row, shard, offset, size in zip(*(column.tolist() for column in columns), strict=True)
            ]
        return located, labels, key_hash

    def _announce(self, s: int, shards: set[int]) -> None:
        """Shards met for the first time: their part of the index is asked for at once."""
        seen = self._seen_shards[s]
        if new := shards - seen:
            self.sources[s].index.will_need(sorted(new))
            if len(seen) > _REMEMBERED_SHARDS:
                seen.clear()
            seen |= new

    def _view(self, encoded: bytes, draws: NDArray[np.float64] | None, is_sound: bool) -> Tensor:
        """Pixels (S, S, C) of a training crop, or of the evaluation view where there are no draws."""
        if self.augmentation is None or draws is None:
            return resize_and_centre(decode_image(encoded, self.channels), self.size, self.eval_crop)
        augmentation = self.augmentation
        row = draws.tolist()
        crop = decode_crop(
            encoded,
            self.channels,
            self.size,
            lambda height, width: augmentation.box(height, width, row),
            interpolation=augmentation.interpolation,
            is_sound=is_sound,
        )
        return self.augment(crop, row)

    def augment(self, crop: Tensor, draws: list[float]) -> Tensor:
        """A crop (S, S, C), flipped and distorted as its row of draws says."""
        assert self.augmentation is not None
        if self.augmentation.is_flipped(draws):
            crop = crop.flip(1)
        if self.augmentation.changes_pixels:
            crop = torch.from_numpy(self.augmentation.distort(crop.numpy(), draws))
        return crop

    def _more_labels(self, located: Sequence[Located]) -> dict[str, Tensor]:
        places: list[int] = []
        labels: list[int] = []
        for source in self.sources:
            if not source.index.is_multi_label:
                continue
            here = [sample for sample in located if sample.source is source]
            all_labels = source.index.labels_of(np.array([sample.row for sample in here], np.int64))
            for sample, several in zip(here, all_labels, strict=True):
                labels += several[1:].tolist()
                places += [sample.place] * (len(several) - 1)
        return {
            "more_rows": torch.tensor(places, dtype=torch.int64),
            "more_labels": torch.tensor(labels, dtype=torch.int64),
        }

    def _release(self) -> None:
        self._batches_until_release -= 1
        if self._batches_until_release == 0:
            self._batches_until_release = _RELEASE_BATCHES
            for source in self.sources:
                source.index.release()

"""ShardedImages: the LightningDataModule that trains from indexed WebDataset shards, in the order of the data plan."""

import multiprocessing
from collections.abc import Iterator, Sized
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from vitlight.data.augment import CropAndFlip
from vitlight.data.batches import Batch, ImageBatches
from vitlight.data.plan import BatchRequest, DataPlan, EvalPlan, choose_subset, split_by_key_hash
from vitlight.data.shards import ShardIndex, load_index
from vitlight.errors import InputError

__all__ = ["ShardedImages"]


class _Requests(Sampler[BatchRequest], Sized):
    """A fixed number of batch requests, made anew by each iteration."""

    def __init__(self, length: int, make: Any) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self._make())


class ShardedImages(pl.LightningDataModule):
    """Images from WebDataset shards: exact subsets, an exact train/validation split, and an order that does not depend on
    ranks, workers or restarts.

    Args:
        train: Training shards: a folder, a glob, a brace pattern or one tar. Indexed once, on first use.
        num_classes: Labels must lie in 0 <= label < num_classes.
        image_size: Pixels of a side after cropping and resizing.
        global_batch_size: Images of one optimizer step, over all ranks and accumulated batches.
        test: The official evaluation shards, read once at the end.
        channels: 3 (RGB) or 1 (luma).
        num_train_samples: Size of the training subset; null takes all. Subsets are nested and keep the class shares.
        train_fraction: The same as a fraction of the training images; give one of the two.
        subset_seed: Draws another family of nested subsets.
        val_fraction: Part of the training shards that is held out as `val`, by hash of the key; 0 for none.
        eval_batch_size: Images of one evaluation batch on one rank.
        augmentation: Random-resized crop and flip of training images.
        eval_crop: Side of the centred evaluation crop, as a fraction of the shorter side.
        mean: Of the normalisation, per channel or one number, for pixels in [0, 1].
        std: Likewise.
        window_shards: Samples are shuffled inside windows of this many shards, drawn anew every epoch.
        num_workers: Decoding processes of each rank (never forked); 0 decodes in the training process.
        index_dir: Where the index of `train` is kept; null: in the shards' folder.
        seed: Of order and augmentation; linked to `seed_everything`.
    """

    def __init__(
        self,
        train: str,
        num_classes: int,
        image_size: int = 224,
        global_batch_size: int = 1024,
        test: str | None = None,
        channels: int = 3,
        num_train_samples: int | None = None,
        train_fraction: float | None = None,
        subset_seed: int = 0,
        val_fraction: float = 0.01,
        eval_batch_size: int = 256,
        augmentation: CropAndFlip = CropAndFlip(),  # noqa: B008  frozen
        eval_crop: float = 0.875,
        mean: float | list[float] = 0.5,
        std: float | list[float] = 0.5,
        window_shards: int = 64,
        num_workers: int = 0,
        index_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise InputError(f"data.channels={channels} is not 1 or 3")
        if num_train_samples is not None and train_fraction is not None:
            raise InputError("data.num_train_samples and data.train_fraction are both given; set one of them to null")
        if train_fraction is not None and not 0.0 < train_fraction <= 1.0:
            raise InputError(f"data.train_fraction={train_fraction} is not in (0, 1]")
        if not 0.0 < eval_crop <= 1.0:
            raise InputError(f"data.eval_crop={eval_crop} is not in (0, 1]")
        self.train_source, self.test_source = train, test
        self.num_classes, self.image_size, self.channels = num_classes, image_size, channels
        self.global_batch_size, self.eval_batch_size = global_batch_size, eval_batch_size
        self.num_train_samples, self.train_fraction = num_train_samples, train_fraction
        self.subset_seed, self.val_fraction = subset_seed, val_fraction
        self.augmentation, self.eval_crop = augmentation, eval_crop
        self.mean, self.std = self._per_channel("mean", mean), self._per_channel("std", std)
        self.window_shards, self.num_workers = window_shards, num_workers
        self.index_dir, self.seed = index_dir, seed
        self.start_step = 0
        self.num_steps: int | None = None
        self._prepared = False

    def _per_channel(self, name: str, value: float | list[float]) -> Tensor:
        values = [float(v) for v in value] if isinstance(value, list) else [float(value)] * self.channels
        if len(values) != self.channels:
            raise InputError(f"data.{name} has {len(values)} values for data.channels={self.channels}")
        if name == "std" and min(values) <= 0:
            raise InputError(f"data.std={value} is not positive")
        return torch.tensor(values).view(1, self.channels, 1, 1)

    def prepare(self) -> None:
        """Load or build the indexes, choose the subset, make the plans. Idempotent; everything that can be wrong with the
        data, and is visible without decoding it, raises InputError here."""
        if self._prepared:
            return
        self.train_index = self._load_index(self.train_source, "train", self.index_dir)
        self.test_index = self._load_index(self.test_source, "test", None) if self.test_source else None
        key_hash = np.asarray(self.train_index.key_hash)
        train_ids, self.val_ids = split_by_key_hash(key_hash, self.val_fraction)
        num = len(train_ids)
        if self.num_train_samples is not None:
            num = self.num_train_samples
            setting = f"data.num_train_samples={num}"
        elif self.train_fraction is not None:
            num = round(self.train_fraction * num)
            setting = f"data.train_fraction={self.train_fraction}"
        if not 1 <= num <= len(train_ids):
            raise InputError(
                f"{setting} asks for {num} images, but {self.train_source} has {len(train_ids)} for training"
                + (f" ({len(self.val_ids)} are held out by data.val_fraction)" if len(self.val_ids) else "")
            )
        if num == len(train_ids):
            chosen = train_ids
        else:
            labels = np.asarray(self.train_index.label)[train_ids]
            chosen = train_ids[choose_subset(labels, key_hash[train_ids], num, self.subset_seed)]
        self.plan = DataPlan(
            chosen,
            np.asarray(self.train_index.shard)[chosen],
            seed=self.seed,
            global_batch_size=self.global_batch_size,
            window_shards=self.window_shards,
            index_digest=self.train_index.digest,
        )
        self._prepared = True

    def _load_index(self, source: str, name: str, index_dir: str | None) -> ShardIndex:
        index = load_index(source, Path(index_dir) if index_dir else None)
        for path in index.shards:
            if not Path(path).is_file():
                raise InputError(f"data.{name}={source}: shard {path} is missing")
        largest = int(index.label.max())
        if largest >= self.num_classes:
            row = int(np.argmax(index.label))
            raise InputError(
                f"data.{name}={source}: image {index.key(row)!r} has label {largest}, but data.num_classes="
                f"{self.num_classes} allows 0 to {self.num_classes - 1}"
            )
        return index

    @property
    def data_digest(self) -> str:
        """What the images and labels of both sources are, wherever they lie."""
        return "+".join(index.digest for index in (self.train_index, self.test_index) if index is not None)

    def setup(self, stage: str) -> None:
        self.prepare()

    def _loader(self, index: ShardIndex, requests: _Requests, augmentation: CropAndFlip | None) -> DataLoader[Batch]:
        dataset = ImageBatches(
            index,
            size=self.image_size,
            channels=self.channels,
            seed=self.seed,
            augmentation=augmentation,
            eval_crop=self.eval_crop,
        )
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=requests,
            num_workers=self.num_workers,
            multiprocessing_context=_clean_server() if self.num_workers else None,
            worker_init_fn=_quiet_worker if self.num_workers else None,
            pin_memory=torch.cuda.is_available(),
            # The loader draws a seed for its workers at each start; nothing here uses it, and torch's global generator
            # must not be advanced by evaluations.
            generator=torch.Generator().manual_seed(0),
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """The batches from `start_step` to `num_steps`, which the classifier sets when it knows its horizon."""
        trainer = self.trainer
        assert trainer is not None and self.num_steps is not None
        rank, num_ranks, num_micro = trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches
        start, stop = self.start_step, self.num_steps
        requests = _Requests(
            (stop - start) * num_micro, lambda: self.plan.micro_batches(start, stop, rank, num_ranks, num_micro)
        )
        return self._loader(self.train_index, requests, self.augmentation)

    def _eval_loader(self, index: ShardIndex, ids: NDArray[np.int64]) -> DataLoader[Batch]:
        rank, num_ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        plan = EvalPlan(ids, self.eval_batch_size)
        requests = _Requests(plan.num_batches(num_ranks), lambda: plan.batches(rank, num_ranks))
        return self._loader(index, requests, None)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        return self._eval_loader(self.train_index, self.val_ids) if len(self.val_ids) else []

    def test_dataloader(self) -> DataLoader[Batch]:
        if self.test_index is None:
            raise InputError("data.test is null: there is no test set to evaluate")
        return self._eval_loader(self.test_index, np.arange(len(self.test_index)))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """uint8 pixels -> normalised float32, on the device."""
        image = batch["image"]
        scale = (1.0 / (255.0 * self.std)).to(image.device, non_blocking=True)
        shift = (-self.mean / self.std).to(image.device, non_blocking=True)
        return {**batch, "image": image.float().mul_(scale).add_(shift)}


def _clean_server() -> ForkServerContext:
    """Workers fork from a server that has imported what they need and holds no thread, lock or device of ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vitlight.data.batches"])
    return context


def _quiet_worker(_: int) -> None:
    """One thread a worker: parallelism comes from the number of workers."""
    torch.set_num_threads(1)

"""ShardedImages: the LightningDataModule that trains from indexed WebDataset shards, in the order of the data plan."""

from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from vitlight.data.augment import Augmentation
from vitlight.data.batches import Batch, ImageBatches, ImageSource
from vitlight.data.cache import ShardCache
from vitlight.data.evaluation_sets import EvaluationSet, OpenedSet, as_evaluation_sets, open_evaluation_sets
from vitlight.data.image_loader import Requests, build_loader
from vitlight.data.index import ShardIndex
from vitlight.data.labels import LabelSource
from vitlight.data.loader import World, evaluation_requests, training_requests
from vitlight.data.mixing import Mixing
from vitlight.data.normalize import Normalization, per_channel
from vitlight.data.on_device import finish_batch, move_batch
from vitlight.data.plan import EvalPlan
from vitlight.data.shared_loader import SharedLoader
from vitlight.data.sources import default_cache_dir, shown
from vitlight.data.store import open_store
from vitlight.data.subset import SubsetRule
from vitlight.data.training_set import IndexOptions, Source, check_labels, check_same_numbers, open_training_set
from vitlight.errors import InputError

__all__ = ["ShardedImages"]

_GIB = 1 << 30


class ShardedImages(pl.LightningDataModule):
    """Images from WebDataset shards: exact subsets, an exact train/validation split, and an order that does not depend on
    ranks, workers or restarts.

    Args:
        train: Training shards: a folder, a glob, a brace pattern, URLs, `pipe:` commands, or a list of these, indexed once,
            on first use. Several sets are mixed as {shards: weight}.
        num_classes: Labels must lie in 0 <= label < num_classes.
        image_size: Pixels of a side after cropping and resizing.
        global_batch_size: Images of one optimizer step, over all ranks and accumulated batches.
        test: The official evaluation shards, read once at the end.
        evaluation_sets: Further sets that a model is evaluated on with `test`, by name: {real: {shards: ..., label_file:
            ...}}, or a YAML file with that; they take no part in what a run is.
        channels: 3 (RGB) or 1 (luma).
        labels: Where in a sample its class stands.
        image_part: Extension of the part that is the image, where samples have several images.
        num_train_samples: Size of the training subset; null takes all. Subsets are nested and keep the class shares.
        train_fraction: The same as a fraction of the training images.
        num_train_samples_per_class: The same as a number for each class; of these three at most one is given.
        long_tail_ratio: First thin the classes out, from all images of the smallest class's number down to 1/ratio of it.
        subset_seed: Draws another family of nested subsets.
        val_fraction: Part of the training shards that is held out as `val`, by hash of the key; 0 for none.
        eval_batch_size: Images of one evaluation batch on one rank.
        augmentation: Of training images.
        mixing: MixUp and CutMix of training batches, on the device.
        num_repeats: Use each image so many times in its batch, differently augmented.
        eval_crop: The shorter side is resized to image_size / eval_crop before the evaluation view is cut from the centre.
        mean: Of the normalisation, per channel or one number, for pixels in [0, 1].
        std: Likewise.
        window_shards: Samples are shuffled inside windows of this many shards, drawn anew every epoch.
        num_streams: A batch is drawn from so many places of an epoch at once, where there are more than window_shards
            shards; a node that decodes 1/n of each batch needs 1/n of the shards, down to one place.
        num_workers: Decoding processes of each rank (never forked); 0 decodes in the training process.
        max_skipped_samples: Training images that can't be decoded and may be left out; the next one stops the run.
        index_dir: Where the indexes are kept; null: in the shards' folder, for remote ones in the cache.
        cache_dir: Where remote shards are kept on the node's disk; null: $VITLIGHT_CACHE or ~/.cache/vitlight.
        cache_gib: The cache's bound in GiB.
        shared_loader: Of training images, on this machine: its address, as `vitlight sweep run --share-loader` sets it.
        seed: Of order and augmentation; linked to `seed_everything`.
    """

    def __init__(
        self,
        train: Source,
        num_classes: int,
        image_size: int = 224,
        global_batch_size: int = 1024,
        test: str | list[str] | None = None,
        evaluation_sets: dict[str, EvaluationSet] | None = None,
        channels: int = 3,
        labels: LabelSource = LabelSource(),  # noqa: B008  frozen
        image_part: str | None = None,
        num_train_samples: int | None = None,
        train_fraction: float | None = None,
        num_train_samples_per_class: int | None = None,
        long_tail_ratio: float | None = None,
        subset_seed: int = 0,
        val_fraction: float = 0.01,
        eval_batch_size: int = 256,
        augmentation: Augmentation = Augmentation(),  # noqa: B008  frozen
        mixing: Mixing = Mixing(),  # noqa: B008  frozen
        num_repeats: int = 1,
        eval_crop: float = 0.875,
        mean: float | list[float] = 0.5,
        std: float | list[float] = 0.5,
        window_shards: int = 64,
        num_streams: int = 64,
        num_workers: int = 0,
        max_skipped_samples: int = 0,
        index_dir: str | None = None,
        cache_dir: str | None = None,
        cache_gib: float = 100.0,
        shared_loader: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise InputError(f"data.channels={channels} is not 1 or 3")
        if not 0.0 < eval_crop <= 1.0:
            raise InputError(f"data.eval_crop={eval_crop} is not in (0, 1]")
        for name, value, least in (
            ("num_classes", num_classes, 1),
            ("num_workers", num_workers, 0),
            ("max_skipped_samples", max_skipped_samples, 0),
        ):
            if value < least:
                raise InputError(f"data.{name}={value} is not at least {least}")
        if not cache_gib > 0:
            raise InputError(f"data.cache_gib={cache_gib} is not above 0")
        self.train_source, self.test_source = train, test
        self.evaluation_sets = as_evaluation_sets(evaluation_sets)
        self.opened_sets: list[OpenedSet] = []  # the same in their order, once `setup` has opened them
        self.num_classes, self.image_size, self.channels = num_classes, image_size, channels
        self.global_batch_size, self.eval_batch_size = global_batch_size, eval_batch_size
        self.subset_rule = SubsetRule(
            val_fraction=val_fraction,
            num_samples=num_train_samples,
            fraction=train_fraction,
            samples_per_class=num_train_samples_per_class,
            long_tail_ratio=long_tail_ratio,
            seed=subset_seed,
        )
        self.augmentation, self.mixing, self.eval_crop = augmentation, mixing, eval_crop
        self.mean, self.std = per_channel("mean", mean, channels), per_channel("std", std, channels)
        self.normalization = Normalization(self.mean, self.std)
        self.window_shards, self.num_streams, self.num_repeats = window_shards, num_streams, num_repeats
        self.num_workers, self.max_skipped_samples, self.seed = num_workers, max_skipped_samples, seed
        self.cache = ShardCache(
            (Path(cache_dir) if cache_dir else default_cache_dir()) / "shards", int(cache_gib * _GIB)
        )
        self.index_options = IndexOptions(labels, image_part, Path(index_dir) if index_dir else None, self.cache)
        self.shared_loader, self.start_step = shared_loader, 0
        self.num_steps: int | None = None
        self._prepared = False

    def prepare(self) -> None:
        """Load or build the indexes, choose the subset, make the plans. Idempotent; everything that can be wrong with the
        data, and is visible without decoding it, raises InputError here."""
        if self._prepared:
            return
        training = open_training_set(
            self.train_source,
            self.index_options,
            self.subset_rule,
            seed=self.seed,
            global_batch_size=self.global_batch_size,
            window_shards=self.window_shards,
            num_streams=self.num_streams,
            num_repeats=self.num_repeats,
        )
        self.train_indexes, self.plan, self.val_ids = training.indexes, training.plan, training.val_ids
        for index in self.train_indexes:
            check_labels(index, self.num_classes, f"data.train={self.train_source}")
        self.test_index = self.index_options.load(self.test_source) if self.test_source else None
        if self.test_index is not None:
            setting = f"data.test={self.test_source}"
            check_labels(self.test_index, self.num_classes, setting)
            names = self.train_indexes[0].class_names
            check_same_numbers(self.test_index, names, setting, "pack it with the training images' classes")
        self.data_digest = training.digest + (f"+{self.test_index.digest}" if self.test_index is not None else "")
        self._prepared = True

    def shards_of_step(self, step: int, rank: int, num_ranks: int) -> list[str]:
        """Names of the shards that a rank reads in a step of training."""
        size = self.plan.micro_batch_size(num_ranks, 1)
        ids = self.plan.batch(step, rank * size, (rank + 1) * size).ids
        names: list[str] = []
        first = 0
        for index in self.train_indexes:
            rows = ids[(ids >= first) & (ids < first + len(index))] - first
            names += [shown(index.shards[shard]) for shard in np.unique(index.shard_of(rows)).tolist()]
            first += len(index)
        return names

    @property
    def is_multi_label(self) -> bool:
        return self.index_options.labels.multi

    def setup(self, stage: str) -> None:
        self.prepare()
        if stage in ("fit", "test") and not self.opened_sets:  # a fault in them shows before a run, not at its end
            names = self.train_indexes[0].class_names
            self.opened_sets, notes = open_evaluation_sets(
                self.evaluation_sets, self.num_classes, names, self.index_options
            )
            for note in notes:
                rank_zero_warn(note)

    @property
    def is_tested(self) -> bool:
        """Whether there is anything to evaluate beside `val`."""
        return self.test_source is not None or bool(self.evaluation_sets)

    def set_of_loader(self, dataloader_idx: int) -> OpenedSet | None:
        """The evaluation set that a loader of `test_dataloader` reads; None for the official one."""
        return [*([None] if self.test_index is not None else []), *self.opened_sets][dataloader_idx]

    def _sources(self, *indexes: ShardIndex) -> list[ImageSource]:
        return [
            ImageSource(index, open_store(index.shards, index.num_bytes, index.shard_digests, self.cache))
            for index in indexes
        ]

    def _batches(self, *indexes: ShardIndex, training: bool) -> ImageBatches:
        return ImageBatches(
            self._sources(*indexes),
            size=self.image_size,
            channels=self.channels,
            seed=self.seed,
            augmentation=self.augmentation if training else None,
            eval_crop=self.eval_crop,
            mixing=self.mixing if training and self.mixing.enabled else None,
            skip_undecodable=training and self.max_skipped_samples > 0,
        )

    @staticmethod
    def _world(trainer: pl.Trainer, num_micro: int) -> World:
        ranks_per_node = max(1, trainer.world_size // trainer.num_nodes)
        return World(trainer.global_rank, trainer.world_size, num_micro, ranks_per_node)

    def train_dataloader(self) -> DataLoader[Batch] | SharedLoader:
        """The batches from `start_step` to `num_steps`, which the classifier sets when it knows its horizon."""
        trainer = self.trainer
        assert trainer is not None and self.num_steps is not None
        world = self._world(trainer, trainer.accumulate_grad_batches)
        size = self.plan.micro_batch_size(world.num_ranks, world.num_micro)
        if self.mixing.enabled and size % 2:
            raise InputError(
                f"data.mixing mixes images in pairs, but a rank's batch has {size}; make it even: data.global_batch_size="
                f"{self.global_batch_size} over {world.num_ranks} ranks x {world.num_micro} accumulated batches"
            )
        start, stop = self.start_step, self.num_steps
        requests = Requests(
            (stop - start) * world.num_micro,
            lambda: training_requests(
                self.plan,
                self.train_indexes,
                self.cache,
                world,
                start_step=start,
                num_steps=stop,
                num_workers=self.num_workers,
            ),
        )
        batches = self._batches(*self.train_indexes, training=True)
        if self.shared_loader is None:
            return build_loader(batches, requests, self.num_workers, size)
        return SharedLoader(self.shared_loader, self.plan, batches, requests, world, self.num_workers)

    def evaluation_loader(
        self, split: Literal["train", "test"], ids: NDArray[np.int64], world: World | None = None
    ) -> DataLoader[Batch]:
        """The evaluation views of the images `ids` of the training shards, held-out ones included, or of the test set: each
        once over the ranks of `world` (None: the trainer's), rank r of R the batches r, r + R, ... of one rank."""
        assert split == "train" or self.test_index is not None
        indexes = self.train_indexes if self.test_index is None or split == "train" else (self.test_index,)
        return self._eval_loader(indexes, ids, world)

    def _eval_loader(
        self, indexes: tuple[ShardIndex, ...], ids: NDArray[np.int64], world: World | None = None
    ) -> DataLoader[Batch]:
        world = world or (self._world(self.trainer, 1) if self.trainer else World())
        plan = EvalPlan(ids, self.eval_batch_size)
        requests = Requests(
            plan.num_batches(world.num_ranks),
            lambda: evaluation_requests(plan, indexes, self.cache, world, num_workers=self.num_workers),
        )
        return build_loader(self._batches(*indexes, training=False), requests, self.num_workers, self.eval_batch_size)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        return self._eval_loader(self.train_indexes, self.val_ids) if len(self.val_ids) else []

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Of the official set, where there is one, and then of each evaluation set."""
        if not self.is_tested:
            raise InputError(
                "data.test is null, and there is no data.evaluation_sets: there is no test set to evaluate"
            )
        official = [] if self.test_index is None else [(self.test_index, np.arange(len(self.test_index)))]
        sets = [*official, *((opened.index, opened.rows) for opened in self.opened_sets)]
        loaders = [self._eval_loader((index,), rows) for index, rows in sets]
        return loaders if self.evaluation_sets else loaders[0]

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Lightning's own would walk through the batch as through any nested collection."""
        return move_batch(batch, device)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """On the device, `finish_batch`; evaluation sets bring labels of their own."""
        tests_sets = bool(self.opened_sets) and self.trainer is not None and self.trainer.testing
        is_of_set = tests_sets and self.set_of_loader(dataloader_idx) is not None
        is_multi_label = self.is_multi_label and not is_of_set
        return finish_batch(batch, self.normalization, self.mixing, self.num_classes, is_multi_label=is_multi_label)

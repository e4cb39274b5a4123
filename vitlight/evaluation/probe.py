"""All classifiers on one network's frozen features: which images are read, and what is measured on which of them.

What is reported is measured on the test set, or on `val` where there is none. No setting is chosen on what is reported:
penalties are chosen on `val` where the test set is reported, and else are the fixed ones alone.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitlight.data.batches import Batch
from vitlight.data.datamodule import ShardedImages
from vitlight.data.loader import World
from vitlight.data.progress import progress
from vitlight.data.shard_index import ShardIndex
from vitlight.errors import InputError
from vitlight.evaluation.features import FeatureSet, extract_features, feature_width
from vitlight.evaluation.logistic import C_CHOICES
from vitlight.evaluation.ridge import FIXED_L2
from vitlight.evaluation.scores import Score, score_few_shot, score_linear, score_neighbours
from vitlight.evaluation.subsets import choose_shots, training_ids
from vitlight.messages import say

__all__ = ["Computer", "FewShotImages", "Probes", "check_single_label", "run_probes"]

Int64 = NDArray[np.int64]
Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Probes:
    """Which classifiers: few-shot ridge regression for `num_seeds` subsets of each number of shots; nearest neighbours for
    each k; linear ones on all training images. l2: of the ridge regressions whose penalty isn't chosen."""

    shots: tuple[int, ...] = (1, 5, 10, 25)
    num_seeds: int = 5
    neighbours: tuple[int, ...] = ()
    linear: bool = False
    l2: float = FIXED_L2

    def __post_init__(self) -> None:
        for name, values in (("shots", self.shots), ("neighbours", self.neighbours)):
            if wrong := [value for value in values if value < 1]:
                raise InputError(f"{name}: {wrong[0]} is not at least 1")
            if len(set(values)) < len(values):
                raise InputError(f"{name}: {', '.join(map(str, values))} names one twice")
        if not 0.0 < self.l2 < math.inf:
            raise InputError(f"l2={self.l2} is not above 0")
        if self.num_seeds < 1:
            raise InputError(f"seeds={self.num_seeds} is not at least 1")
        if not (self.shots or self.neighbours or self.linear):
            raise InputError("there is nothing to measure: ask for shots, nearest neighbours or linear probes")

    @property
    def read_all(self) -> bool:
        """Whether the features of all training images are needed."""
        return bool(self.neighbours) or self.linear


@dataclass(frozen=True)
class FewShotImages:
    """chosen: (S, K, k) training images by seed, class and rank. ids: (n,) those whose features are needed, rising."""

    chosen: Int64
    ids: Int64

    @property
    def rows(self) -> Int64:
        """`chosen`, as rows of `ids`."""
        return np.searchsorted(self.ids, self.chosen)

    @classmethod
    def choose(cls, data: ShardedImages, shots: Sequence[int], num_seeds: int) -> "FewShotImages":
        """Of all training images but the held-out ones, whichever of them the run trains on. Raises InputError for images
        with several labels, and a class with too few."""
        check_single_label(data)
        indexes, names = data.train_indexes, data.train_indexes[0].class_names
        chosen = [
            choose_shots(indexes, data.val_ids, max(shots), seed, data.num_classes, names) for seed in range(num_seeds)
        ]
        return cls(np.stack(chosen), np.unique(chosen))


@dataclass(frozen=True)
class Computer:
    """How features come about: `network` on its device; `prepare` and `computing` as `extract_features` takes them; `world`:
    this process among the ranks, None: as the data's trainer says. shows: whether there is somebody to show progress."""

    network: nn.Module
    prepare: Callable[[Batch], Tensor]
    computing: Callable[[], AbstractContextManager[object]] = nullcontext
    dtype: torch.dtype = torch.float32
    world: World | None = None
    shows: bool = False

    @property
    def solver(self) -> torch.device:
        """Where classifiers are fitted: float64 is not on every device."""
        device = next(self.network.parameters()).device
        return device if device.type == "cuda" else torch.device("cpu")

    def features(self, data: ShardedImages, split: Split, ids: Int64) -> FeatureSet:
        """Of images of the training shards (`train`, `val`) or the test set; on other ranks than the first (0, 0)."""
        indexes: tuple[ShardIndex, ...] = data.train_indexes
        if split == "test":
            assert data.test_index is not None
            indexes = (data.test_index,)
        loader = data.evaluation_loader("test" if split == "test" else "train", ids, self.world)
        title = f"Features of {'training' if split == 'train' else split} images"
        with progress(title, len(ids), "images") if self.shows else nullcontext(lambda count: None) as advance:
            values = extract_features(
                self.network,
                loader,
                len(ids),
                self.prepare,
                dtype=self.dtype,
                computing=self.computing,
                advance=advance,
            )
        labels = _labels(indexes, ids)[: len(values)]
        return FeatureSet(values, torch.from_numpy(labels))


def _labels(indexes: Sequence[ShardIndex], ids: Int64) -> Int64:
    labels = np.empty(len(ids), np.int64)
    first = 0
    for index in indexes:
        here = (ids >= first) & (ids < first + len(index))
        labels[here] = index.label[ids[here] - first]
        first += len(index)
    return labels


def check_single_label(data: ShardedImages) -> None:
    """InputError where images may have several labels: none of these classifiers means anything for them."""
    if data.is_multi_label:
        raise InputError(
            "data.labels.multi=true: few-shot, nearest neighbours and linear probes need one label an image"
        )


def run_probes(probes: Probes, data: ShardedImages, computer: Computer) -> list[Score]:
    """Called by all ranks; the scores are on the first, and none on the others.

    Raises InputError for data without test and held-out images, images with several labels, a class with fewer images than
    shots, more neighbours than images, and features that are not finite.
    """
    check_single_label(data)
    reports: Split = "val" if data.test_index is None else "test"
    if reports == "val" and not len(data.val_ids):
        raise InputError("data.test=null and data.val_fraction=0.0: there are no images to measure on")
    shots = FewShotImages.choose(data, probes.shots, probes.num_seeds) if probes.shots else None
    if shots is None or probes.read_all:
        ids = training_ids(data.train_indexes, data.val_ids)
        shots = FewShotImages(shots.chosen, ids) if shots is not None else None
    else:
        ids = shots.ids
    if probes.neighbours and max(probes.neighbours) > len(ids):
        raise InputError(f"{max(probes.neighbours)} nearest neighbours of {len(ids)} training images; ask for fewer")
    chooses = reports == "test" and len(data.val_ids) > 0 and bool(probes.shots or probes.linear)
    test_ids = data.val_ids if data.test_index is None else np.arange(len(data.test_index))
    if computer.shows:
        num = len(ids) + len(test_ids) + chooses * len(data.val_ids)
        width = feature_width(computer.network)
        mib = num * width * computer.dtype.itemsize / 2**20
        memory = f"{mib:.1f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"
        say(f"features of {num:,} images: {width:,} numbers each, {memory} of memory")
    train = computer.features(data, "train", ids)
    evaluated = computer.features(data, reports, test_ids)
    val = computer.features(data, "val", data.val_ids) if chooses else None
    if not len(train):
        return []
    for name, images in (("training", train), (reports, evaluated), ("val", val)):
        if images is not None and images.num_nonfinite:
            raise InputError(
                f"the features of {images.num_nonfinite} of {len(images)} {name} images are not finite numbers"
            )
    device, scores = computer.solver, []
    if shots is not None:
        scores += score_few_shot(train, shots.rows, probes.shots, evaluated, val, device, probes.l2)
    if probes.neighbours:
        scores += score_neighbours(train, probes.neighbours, data.num_classes, evaluated, device)
    if probes.linear:
        with progress("Logistic regression", 1 if val is None else len(C_CHOICES), "penalties") as advance:
            scores += score_linear(train, data.num_classes, evaluated, val, device, probes.l2, advance)
    return scores

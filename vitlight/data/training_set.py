"""What a run trains on and holds out: indexes opened, samples chosen, the plan made. Needs neither torch nor lightning."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitlight.data.cache import ShardCache
from vitlight.data.index import ShardIndex, load_index
from vitlight.data.labels import LabelSource
from vitlight.data.plan import DataPlan, PlanSource
from vitlight.data.shard_set import shard_place
from vitlight.data.sources import shown
from vitlight.data.subset import SubsetRule, choose_rows
from vitlight.errors import InputError

__all__ = ["IndexOptions", "Source", "TrainingSet", "check_labels", "named_sources", "open_training_set"]

Source = str | list[str] | dict[str, float]
"""Shards as load_index takes them, a list of such, or several sets as {shards: weight}."""


@dataclass(frozen=True)
class IndexOptions:
    """How shards are read when they are indexed; see load_index."""

    labels: LabelSource = field(default_factory=LabelSource)
    image_part: str | None = None
    index_dir: Path | None = None
    cache: ShardCache | None = None

    def load(self, source: str | Sequence[str]) -> ShardIndex:
        return load_index(source, self.index_dir, labels=self.labels, image_part=self.image_part, cache=self.cache)


@dataclass(frozen=True)
class TrainingSet:
    """indexes: one for each source; plan: over all of them; val_ids (V,): what is held out, numbered as in the plan; digest:
    of the images, labels and weights, wherever they lie."""

    indexes: tuple[ShardIndex, ...]
    plan: DataPlan
    val_ids: NDArray[np.int64]
    digest: str


def named_sources(source: Source) -> list[tuple[str | list[str], float]]:
    """(shards, weight) of each source of `data.train`. Raises InputError for a weight that is none."""
    if not isinstance(source, Mapping):
        _check_no_mixture(source)
        return [(source, 1.0)]
    if not source:
        raise InputError("data.train={} names no shards")
    for shards, weight in source.items():
        if not (weight > 0 and math.isfinite(weight)):
            raise InputError(f"data.train: the weight {weight} of {shards} is not a number above 0")
    return [(shards, float(weight)) for shards, weight in source.items()]


def _check_no_mixture(source: str | Sequence[str]) -> None:
    """A mixture of which a weight is no number comes here as text; it must not be taken for a brace pattern."""
    if not (isinstance(source, str) and source.startswith("{") and source.endswith("}") and ":" in source):
        return
    import yaml

    try:
        content = yaml.safe_load(source)
    except yaml.YAMLError:
        return
    if isinstance(content, dict) and any(weight is not None for weight in content.values()):
        raise InputError(f"data.train={source} is no mixture: {{shards: weight}}, each weight a number above 0")


def check_labels(index: ShardIndex, num_classes: int, setting: str) -> None:
    """Raises InputError naming the first image whose label data.num_classes does not allow."""
    beyond = np.flatnonzero(index.class_counts[num_classes:])
    if len(beyond) == 0:
        return
    largest = num_classes + int(beyond[-1])
    row = int(np.argmax(index.label == largest))
    if index.label[row] != largest:
        assert index.extra_row is not None and index.extra_label is not None
        row = int(index.extra_row[np.argmax(index.extra_label == largest)])
    raise InputError(
        f"{setting}: image {index.key(row)!r} has label {largest}, but data.num_classes={num_classes} allows 0 to "
        f"{num_classes - 1}"
    )


def check_same_numbers(index: ShardIndex, names: Sequence[str] | None, setting: str, remedy: str) -> None:
    """Raises InputError where a class that both `index` and `names`, the model's classes, have has another number there, as
    after folders of images were packed of which one lacks a class. Where no name is in both, they may mean the same."""
    if index.class_names is None or names is None:
        return
    numbers = {name: number for number, name in enumerate(names)}
    for number, name in enumerate(index.class_names):
        ours = numbers.get(name, number)
        if ours != number:
            raise InputError(
                f"{setting}: class {name!r} is number {number} there and {ours} in data.train, by classes.txt; {remedy}"
            )


def open_training_set(
    source: Source,
    options: IndexOptions,
    rule: SubsetRule,
    *,
    seed: int,
    global_batch_size: int,
    window_shards: int = 64,
    num_streams: int = 64,
    num_repeats: int = 1,
) -> TrainingSet:
    """Opens or builds the indexes of `source`, splits and thins each by `rule`, and plans over them.

    With several sources every fraction is taken of each, and a number of samples can't be given. Raises InputError for what
    load_index, choose_rows and DataPlan refuse, and where two sources name their classes differently or share a shard.
    """
    named = named_sources(source)
    if len(named) > 1 and rule.num_samples is not None:
        raise InputError(
            f"data.num_train_samples={rule.num_samples} with {len(named)} sources in data.train; use data.train_fraction"
        )
    indexes: list[ShardIndex] = []
    sources, val_ids, described = [], [], []
    first_id = 0
    for shards, weight in named:
        index = options.load(shards)
        first = indexes[0] if indexes else index
        if None not in (first.class_names, index.class_names) and first.class_names != index.class_names:
            raise InputError(f"data.train: {named[0][0]} and {shards} name their classes differently; index them alike")
        chosen = choose_rows(index, rule, memory=index.folder / "selections")
        sources.append(PlanSource(chosen.train, len(index), weight, f"{index.digest} {sorted(asdict(rule).items())}"))
        val_ids.append(chosen.val_rows + first_id)
        first_id += len(index)
        described.append(index.digest if len(named) == 1 else f"{index.digest}*{weight:g}")
        indexes.append(index)
    if len(indexes) > 1:
        _check_apart(indexes)
    plan = DataPlan(
        sources,
        seed=seed,
        global_batch_size=global_batch_size,
        window_shards=window_shards,
        num_streams=num_streams,
        num_repeats=num_repeats,
    )
    return TrainingSet(tuple(indexes), plan, np.concatenate(val_ids), "+".join(described))


def _check_apart(indexes: Sequence[ShardIndex]) -> None:
    """An image of two sources would be two, and might be held out in one of them and trained on in the other."""
    seen: set[str] = set()
    for index in indexes:
        for shard in index.shards:
            place = shard_place(shard)
            if place in seen:
                raise InputError(f"data.train: {shown(shard)} is in two of its sources; name each shard once")
            seen.add(place)

"""Further sets of images that a model is judged by: ReaL, V2, ObjectNet, ImageNet-A, -R and -Sketch, or anybody's.

A set is shards, and what is right for each of its images: the shards' own labels, or a file of labels by image, brought to
the model's classes by a map where the set's are others. An image may have several right classes; one with none (ReaL
leaves out 3,163 of 50,000) is not evaluated, and counted.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlight.data.index import ShardIndex, load_index
from vitlight.data.label_files import ClassNumbers, Labels, read_class_map, read_label_file
from vitlight.data.labels import LabelSource
from vitlight.data.training_set import IndexOptions, check_same_numbers
from vitlight.errors import InputError

__all__ = ["EvaluationSet", "OpenedSet", "as_evaluation_sets", "open_evaluation_sets"]

Int64 = NDArray[np.int64]

# Of images whose own label and the label file's should mostly agree: ReaL's contain ImageNet's in nine of ten.
_LEAST_AGREEMENT = 0.5


@dataclass(frozen=True)
class EvaluationSet:
    """Images to evaluate a model on, beside `data.test`.

    Args:
        shards: Of the set, as `data.test`.
        labels: Where a sample's class stands in these shards, as `data.labels`.
        label_file: The labels of its images, in place of those in the shards: a .json list in the order of the numbers in
            the images' names, as ReaL's real.json; or by key, {key: label or labels} in a .json file, `key,labels` in a .csv
            file. An image with no label is left out.
        class_map: File that says which of the model's classes each class of the set is: {own class: class or classes} in a
            .json file, or a list (.json, or a text file with a line for each own class from 0 on). Images whose class the
            model doesn't have are left out. null: the classes are the model's.
        restrict: Choose among the set's classes alone, as for ImageNet-A and -R, which have 200 of the 1,000.
    """

    shards: str | list[str]
    labels: LabelSource = LabelSource()  # noqa: RUF009  frozen
    label_file: str | None = None
    class_map: str | None = None
    restrict: bool = False


@dataclass(frozen=True, eq=False)
class OpenedSet:
    """An evaluation set whose n images with a right class are known."""

    name: str
    index: ShardIndex
    rows: Int64
    """(n,): the images that are evaluated, as rows of the index, rising."""
    target_start: Int64
    """(n + 1,): the right classes of image i are target[target_start[i]:target_start[i + 1]], at least one."""
    target: Int64
    candidates: Int64 | None
    """The model's classes that are chosen among, rising; None: all."""
    digest: str
    """16 hex digits over the images, what is right for them, and the candidates."""

    @property
    def num_left_out(self) -> int:
        """Images with no right class."""
        return len(self.index) - len(self.rows)

    def targets_of(self, first: int, count: int) -> tuple[Int64, Int64]:
        """(places, classes) of the images first, ..., first + count - 1: class classes[j] is right for image first +
        places[j]. Images from n on have none."""
        last = min(first + count, len(self.rows))
        if first >= last:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        starts = self.target_start[first : last + 1]
        return np.repeat(np.arange(last - first), np.diff(starts)), self.target[starts[0] : starts[-1]]


def as_evaluation_sets(settings: Mapping[str, Any] | None) -> dict[str, EvaluationSet]:
    """The sets of `data.evaluation_sets`, as a command line, a file or Python gives them. Raises InputError for a name that
    can't be a column's."""
    sets = {}
    for name, given in (settings or {}).items():
        if name == "__path__":  # which the parser puts beside the sets of a file
            continue
        if not name.replace("_", "").isalnum() or name in ("count",):
            raise InputError(f"data.evaluation_sets: {name!r} is no name of a set; use letters, digits and _")
        if not isinstance(given, EvaluationSet):
            fields = dict(given if isinstance(given, Mapping) else vars(given))
            labels = fields.pop("labels", None) or LabelSource()
            if not isinstance(labels, LabelSource):
                labels = LabelSource(**(labels if isinstance(labels, Mapping) else vars(labels)))
            given = EvaluationSet(**fields, labels=labels)
        sets[name] = given
    return sets


def open_evaluation_sets(
    sets: Mapping[str, EvaluationSet], num_classes: int, class_names: Sequence[str] | None, options: IndexOptions
) -> tuple[list[OpenedSet], list[str]]:
    """The sets, for a model of `num_classes`, named `class_names` where that is known; and lines on what is odd about them.

    options: where indexes and remote shards are kept. Raises InputError for what load_index and the files' readers refuse, a
    label that is none of the model's classes, and a set of which no image is left.
    """
    notes: list[str] = []
    opened = [_open(name, spec, num_classes, class_names, options, notes) for name, spec in sets.items()]
    return opened, notes


def _open(
    name: str,
    spec: EvaluationSet,
    num_classes: int,
    class_names: Sequence[str] | None,
    options: IndexOptions,
    notes: list[str],
) -> OpenedSet:
    setting = f"data.evaluation_sets.{name}"
    index = load_index(spec.shards, options.index_dir, labels=spec.labels, cache=options.cache)
    model = ClassNumbers(num_classes, class_names, "the model's classes")
    class_map: dict[int, Labels] | None = None
    own = model
    if spec.class_map is not None:
        own = ClassNumbers(1 << 24, index.class_names, f"the classes of {setting}")
        class_map = read_class_map(Path(spec.class_map).expanduser(), own, model)
    everywhere = np.arange(len(index))
    in_shards: list[Labels] = [tuple(labels.tolist()) for labels in index.labels_of(everywhere)]
    given: list[Labels] = in_shards
    if spec.label_file is not None:
        path = Path(spec.label_file).expanduser()
        read = read_label_file(path, [index.key(i) for i in range(len(index))], own)
        given = [labels or () for labels in read]
        if missing := sum(labels is None for labels in read):
            notes.append(f"{setting}: {path} has no labels for {missing} of {len(index)} images, which are left out")
        notes += _disagreement(setting, path, in_shards, given)
    elif class_map is None:
        shards = f"{setting}.shards={spec.shards}"
        if beyond := [i for i, labels in enumerate(given) if max(labels) >= num_classes]:
            raise InputError(
                f"{shards}: image {index.key(beyond[0])!r} has label {max(given[beyond[0]])}, but "
                f"data.num_classes={num_classes} allows 0 to {num_classes - 1}; where its classes are others, set "
                f"{setting}.class_map"
            )
        check_same_numbers(index, class_names, shards, f"set {setting}.class_map, which may be its classes.txt")
    if class_map is not None:
        given = [tuple(dict.fromkeys(c for label in labels for c in class_map.get(label, ()))) for labels in given]
    rows = np.array([i for i, labels in enumerate(given) if labels], np.int64)
    if not len(rows):
        raise InputError(
            f"{setting}: none of {len(index)} images has a class of the model; see its label_file and class_map"
        )
    kept = [given[i] for i in rows.tolist()]
    target = np.array([c for labels in kept for c in labels], np.int64)
    target_start = np.cumsum([0, *map(len, kept)])
    candidates = None
    if spec.restrict:
        of_map = [c for labels in (class_map or {}).values() for c in labels]
        candidates = np.unique(np.array(of_map, np.int64) if of_map else target)
    digest = hashlib.blake2b(index.digest.encode(), digest_size=8)
    for part in (rows, target_start, target, candidates if candidates is not None else np.empty(0, np.int64)):
        digest.update(np.asarray(part, "<i8").tobytes() + b"|")
    return OpenedSet(name, index, rows, target_start, target, candidates, digest.hexdigest())


def _disagreement(setting: str, path: Path, in_shards: Sequence[Labels], given: Sequence[Labels]) -> list[str]:
    """A line where the labels of a file are hardly ever those of the shards: it may be in another order."""
    judged = [(own, labels) for own, labels in zip(in_shards, given, strict=True) if labels]
    agreeing = sum(bool(set(own) & set(labels)) for own, labels in judged)
    if not judged or agreeing >= _LEAST_AGREEMENT * len(judged):
        return []
    return [
        f"{setting}: the labels in {path} and those in the shards agree for {agreeing} of {len(judged)} images; is the file "
        f"in the order of the images' names?"
    ]

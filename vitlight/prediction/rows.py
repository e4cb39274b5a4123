"""One prediction a row: as CSV, as JSON, and as a line for people."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitlight.prediction.images import Item

__all__ = ["Columns", "Prediction"]

_SHOWN = 5


@dataclass(frozen=True)
class Prediction:
    """Of one image: its likeliest classes (k,), their probabilities (k,), and where they are wanted those of all classes
    (K,). Where it has none, error says why."""

    item: Item
    classes: NDArray[np.int64] | None = None
    probabilities: NDArray[np.float32] | None = None
    all_probabilities: NDArray[np.float32] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Columns:
    """What a table of predictions has: `image`, `shard` where there are shards, for each of the `top` likeliest classes
    `class_i`, `name_i` where classes have names, and `probability_i`, i from 1; `p_0`, `p_1`, ... of all `num_all` classes
    where that is above 0; `error`. A probability is written with as many digits as make its float32 again."""

    top: int
    num_all: int
    has_shards: bool
    class_names: tuple[str, ...] | None

    @property
    def names(self) -> list[str]:
        kinds = ("class", "name", "probability") if self.class_names is not None else ("class", "probability")
        return [
            "image",
            *(["shard"] if self.has_shards else []),
            *(f"{kind}_{i}" for i in range(1, self.top + 1) for kind in kinds),
            *(f"p_{i}" for i in range(self.num_all)),
            "error",
        ]

    def csv(self, predictions: Sequence[Prediction]) -> bytes:
        """Their lines, one each whatever is in them."""
        return _csv_lines(self._values(prediction) for prediction in predictions)

    def csv_header(self) -> bytes:
        return _csv_lines([self.names])

    def _values(self, prediction: Prediction) -> list[str]:
        item = prediction.item
        values = [item.name, *([item.shard_name] if self.has_shards else [])]
        if prediction.classes is None or prediction.probabilities is None:
            values += [""] * (len(self.names) - len(values) - 1)
        else:
            for number, probability in zip(prediction.classes.tolist(), prediction.probabilities, strict=True):
                name = [] if self.class_names is None else [self.class_names[number]]
                values += [str(number), *name, str(probability)]
            if prediction.all_probabilities is not None:
                values += map(str, prediction.all_probabilities)
        return [*values, prediction.error or ""]

    def json(self, prediction: Prediction) -> str:
        """One object in one line: image, shard, top, probabilities of all classes, error."""
        item = prediction.item
        row: dict[str, object] = {"image": _printable(item.name)}
        if self.has_shards:
            row["shard"] = item.shard_name
        if prediction.classes is not None and prediction.probabilities is not None:
            pairs = zip(prediction.classes.tolist(), _floats(prediction.probabilities), strict=True)
            row["top"] = [
                {"class": number, **self._name(number), "probability": probability} for number, probability in pairs
            ]
        if prediction.all_probabilities is not None:
            row["probabilities"] = _floats(prediction.all_probabilities)
        return json.dumps({**row, "error": prediction.error})

    def _name(self, number: int) -> dict[str, str]:
        return {} if self.class_names is None else {"name": self.class_names[number]}

    def line(self, prediction: Prediction) -> str:
        """The image and its likeliest classes, five at most."""
        item = prediction.item
        where = _printable(item.name) or item.shard_name
        if prediction.classes is None or prediction.probabilities is None:
            return f"{where}: error: {prediction.error}"
        pairs = list(zip(prediction.classes.tolist(), prediction.probabilities.tolist(), strict=True))
        named = [(self._name(number).get("name", f"class {number}"), probability) for number, probability in pairs]
        more = f", {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        return f"{where}: " + ", ".join(f"{name} {probability:.3f}" for name, probability in named[:_SHOWN]) + more


def _floats(values: NDArray[np.float32]) -> list[float]:
    """The shortest numbers that round to these float32."""
    return [float(str(value)) for value in values]


def _printable(text: str) -> str:
    """In one line of valid UTF-8, whatever a file is called."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")


def _csv_lines(rows: Iterable[list[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_printable(value) for value in row] for row in rows)
    return text.getvalue().encode()

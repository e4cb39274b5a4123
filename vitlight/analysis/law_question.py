"""What a user asks of `vitlight law`, read from the words of its arguments."""

from __future__ import annotations

import argparse
import itertools
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from vitlight.errors import InputError, did_you_mean

__all__ = ["Amount", "Condition", "Question", "read_condition", "read_question", "select"]

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
CONDITION = re.compile(r"\s*([^!<>=\s]+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*")


@dataclass(frozen=True)
class Amount:
    """What a budget is: training FLOPs, or hours of one device."""

    value: float
    in_hours: bool

    def flops(self, rate: float | None) -> float:
        """Training FLOPs, hours at `rate` FLOP/s of one device. InputError for hours without a rate."""
        if not self.in_hours:
            return self.value
        if rate is None:
            raise InputError(f"{self.value:g}h says FLOPs only with a rate, and no run has both train_flops and "
                             "device_seconds; give --rate FLOP/S or the budget in FLOPs")  # fmt: skip
        return self.value * 3600 * rate


@dataclass(frozen=True)
class Condition:
    """A row stays if `column` stands in this relation to one of `values`, or for != to none of them."""

    column: str
    relation: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """The arguments of `vitlight law` but for its sources and where its answer goes; docs/laws.md has a line for each."""

    error: str = "top1"
    form: str = "auto"
    x: str = "train_flops"
    size: str = "params"
    by: tuple[str, ...] = ("family",)
    pool: tuple[str, ...] = ()
    where: tuple[Condition, ...] = ()
    pareto: bool = False
    hold_out: float = 0.25
    bootstrap: int = 1000
    level: float = 0.9
    seed: int = 0
    predict: tuple[dict[str, float], ...] = ()  # each: name of an axis of laws.Points -> value
    frontier: bool = False
    budget: Amount | None = None
    rate: float | None = None  # FLOP/s of one device
    images: float | None = None
    next: int = 3
    sweep: str | None = None
    trial: Amount | None = None
    narrow: str | None = None

    @property
    def axis_names(self) -> dict[str, str]:
        """Column of the table -> the axis of laws.Points that it fills."""
        return {
            self.x: "compute",
            self.size: "params",
            "samples_seen": "samples",
            "unique_samples_seen": "unique_samples",
        }

    def in_columns(self, line: str) -> str:
        """A warning in the words of the table, where an axis holds another column than the one it is named for."""
        for axis, column in (("params", self.size), ("compute", self.x)):
            line = re.sub(rf"\b{axis}=", f"{column}=", line)
        return line


def read_question(args: argparse.Namespace) -> Question:
    """The parsed arguments with their small languages read. InputError names the argument that can't be."""
    plain = {field.name: getattr(args, field.name) for field in fields(Question)}
    if plain["next"] is None:
        plain["next"] = Question.next
    for name in ("budget", "trial"):
        if plain[name] is not None:
            plain[name] = _amount(f"--{name}", plain[name])
    question = Question(
        **plain
        | {
            "by": tuple(args.by) if args.by else tuple(name for name in ("family",) if name not in args.pool),
            "pool": tuple(args.pool),
            "where": tuple(read_condition(text) for text in args.where),
            "predict": (),
        }
    )
    for column in question.by:
        if column in question.pool:
            raise InputError(f"--by={column} splits what --pool={column} joins; leave one out")
    points = [point for text in args.predict for point in _places(text, question.axis_names)]
    return Question(
        **{field.name: getattr(question, field.name) for field in fields(Question)} | {"predict": tuple(points)}
    )


def _amount(flag: str, text: str) -> Amount:
    in_hours = text.strip().lower().endswith("h")
    value = _number(flag, text.strip()[:-1] if in_hours else text)
    if not value > 0:
        raise InputError(f"{flag}={text} is not above 0")
    return Amount(value, in_hours)


def read_condition(text: str) -> Condition:
    """`COLUMN=VALUE,VALUE` or with another relation. InputError for other text."""
    match = CONDITION.fullmatch(text)
    if match is None or not match[3]:
        raise InputError(f"--where={text!r} is no condition; write COLUMN=VALUE, or with != < <= > >=, in quotes")
    column, relation, values = match.groups()
    return Condition(column, relation, tuple(value.strip() for value in values.split(",")))


def _places(text: str, axes: Mapping[str, str]) -> list[dict[str, float]]:
    """Every combination of the values: `params=1e6,2e6 samples_seen=1e9` is two places."""
    values: dict[str, list[float]] = {}
    for part in text.split():
        column, equals, numbers = part.partition("=")
        if not equals or not numbers:
            raise InputError(f"--predict={text!r}: {part!r} is not COLUMN=VALUE,VALUE; write train_flops=1e21,1e22")
        if column not in axes:
            raise InputError(
                f"--predict={text!r}: {column!r} is no axis of the law{did_you_mean(column, axes)}; axes: {', '.join(axes)}"
            )
        values[axes[column]] = [_number("--predict", number) for number in numbers.split(",")]
        if not all(value > 0 for value in values[axes[column]]):
            raise InputError(f"--predict={text!r}: {column} must be above 0")
    if not values:
        raise InputError("--predict is empty; write train_flops=1e21,1e22")
    return [dict(zip(values, place, strict=True)) for place in itertools.product(*values.values())]


def _number(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{flag}: {text!r} is not a number, such as 1e21") from None
    if not math.isfinite(value):
        raise InputError(f"{flag}: {text} is not finite")
    return value


def select(runs: pd.DataFrame, conditions: tuple[Condition, ...]) -> pd.DataFrame:
    """The rows that meet every condition. Numbers are compared as numbers; a missing value meets only !=.

    InputError: a column that the table lacks, a value that isn't a number where the column's are, or no row left.
    """
    for condition in conditions:
        if condition.column not in runs:
            names = list(map(str, runs.columns))
            raise InputError(
                f"--where: the table has no column {condition.column!r}{did_you_mean(condition.column, names)}"
            )
        meets = _meets(runs[condition.column], condition)
        if not meets.any():
            present = ", ".join(sorted(map(str, runs[condition.column].dropna().unique()))[:8]) or "nothing"
            raise InputError(
                f"--where={condition.column}{condition.relation}{','.join(condition.values)} leaves no run; "
                f"the column has {present}"
            )
        runs = runs[meets]
    return runs


def _meets(column: pd.Series[Any], condition: Condition) -> np.ndarray[Any, np.dtype[np.bool_]]:
    values = column.astype(object).where(column.notna(), None).to_list()
    wanted: list[Any] = list(condition.values)
    if any(isinstance(value, bool) for value in values):
        values = [None if value is None else str(value).lower() for value in values]
        wanted = [value.lower() for value in wanted]
    numeric = all(isinstance(value, int | float) for value in values if value is not None)
    if numeric and any(value is not None for value in values):
        wanted = [_number(f"--where={condition.column}", value) for value in wanted]
    elif condition.relation not in ("=", "!="):
        raise InputError(f"--where: {condition.column} is text; compare it with = or !=")
    relation = OPERATORS[condition.relation]
    if condition.relation == "!=":
        return np.array([all(value != one for one in wanted) for value in values], dtype=bool)
    return np.array([value is not None and any(relation(value, one) for one in wanted) for value in values], dtype=bool)

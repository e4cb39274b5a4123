"""Which cells a search has: random ones, known beforehand, or those that W&B's Bayesian search has suggested so far."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from vitlight.errors import InputError
from vitlight.sweep.search_engine import draw, suggest
from vitlight.sweep.search_space import Spec

__all__ = ["NUM_BLIND", "Search", "Suggestion"]

NUM_BLIND = 2  # cells that Bayesian search suggests before it can know of two results
_MOST_REPEATS = 1000


@dataclass(frozen=True)
class Suggestion:
    """The parameters of cell `index`, and why it is not to be run, where that is so."""

    index: int
    parameters: dict[str, Any]
    refused: str | None = None


@dataclass(frozen=True)
class Search:
    """How a sweep that is no grid finds its cells.

    `seed` None: not said, so the one that the sweep's directory has, or 0. `suggested`: what the directory has of a Bayesian
    search; None where nobody has looked.
    """

    method: Literal["random", "bayes"]
    specs: dict[str, Spec]  # dotted name -> what it is drawn from, sorted by name
    run_cap: int
    metric: dict[str, str] | None
    seed: int | None = None
    suggested: tuple[Suggestion, ...] | None = None
    command: tuple[str, ...] = ()  # that the parameters are arguments of

    @cached_property
    def digest(self) -> str:
        """Eight hex digits of what results depend on besides the seed: an edited space is another search."""
        what = [self.method, self.specs, self.metric if self.method == "bayes" else None, self.command]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]

    def suggestions(self) -> list[Suggestion]:
        """Of a random search all; of a Bayesian one those made so far, and the first two in any case."""
        if self.method == "random":
            return [Suggestion(index, parameters) for index, parameters in enumerate(self._distinct_draws())]
        made = {each.index: each for each in self.suggested or ()}
        missing = [self.blind(index) for index in range(min(NUM_BLIND, self.run_cap)) if index not in made]
        return sorted([*made.values(), *missing], key=lambda each: each.index)

    def blind(self, index: int) -> Suggestion:
        """What a Bayesian search suggests as long as it knows no result."""
        assert self.metric is not None
        return Suggestion(index, suggest(self.specs, self.metric, self.seed or 0, index, ()))

    def other(self, index: int, attempt: int) -> Suggestion:
        """A random cell in place of one that is not wanted."""
        return Suggestion(index, draw(self.specs, self.seed or 0, index, attempt))

    def num_combinations(self) -> float:
        """Of values: infinite where one is drawn from more than a list or whole numbers."""
        return math.prod(map(_num_values, self.specs.values()))

    def _distinct_draws(self) -> Iterator[dict[str, Any]]:
        """`run_cap` draws, without those that repeat an earlier one."""
        most = self.num_combinations()
        if self.run_cap > most:
            raise InputError(f"run_cap is {self.run_cap}, but its parameters have {most:g} combinations; lower it")
        seen: set[str] = set()
        for index in range(self.run_cap):
            for attempt in range(_MOST_REPEATS):
                parameters = draw(self.specs, self.seed or 0, index, attempt)
                if _key(parameters) not in seen:
                    break
            else:
                raise InputError(
                    f"run_cap is {self.run_cap}, but {_MOST_REPEATS} draws after the first {index} cells found no new one; "
                    "lower it"
                )
            seen.add(_key(parameters))
            yield parameters


def _key(parameters: Mapping[str, Any]) -> str:
    return repr(sorted(parameters.items()))


def _num_values(spec: Spec) -> float:
    if "value" in spec:
        return 1
    if "values" in spec:
        return sum(each > 0 for each in spec["probabilities"]) if "probabilities" in spec else len(spec["values"])
    return spec["max"] - spec["min"] + 1 if spec["distribution"] == "int_uniform" else math.inf

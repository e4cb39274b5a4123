"""W&B's own search engine, the package `sweeps`, run here: its distributions, its Bayesian search and its hyperband.

It is the code that W&B's server calls, so a range, a suggestion and an early end mean here what they mean there. Random
numbers are not its own but counted: each is a function of the search's seed, the cell's number and the parameter's name.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitlight.errors import InputError
from vitlight.sweep.search_space import Spec

__all__ = ["Observed", "draw", "ended_early", "require_engine", "suggest"]

_DIGITS = 6  # of a drawn number, so that it can be read and written again


@dataclass(frozen=True)
class Observed:
    """A cell as the engine sees it."""

    parameters: Mapping[str, Any]
    state: str  # running, finished, killed (ended early), failed
    history: Sequence[float] = ()  # values of the metric, in the order in which they were logged
    last: float | None = None  # the metric in the result, where it stands there
    name: str = ""


def draw(specs: Mapping[str, Spec], seed: int, index: int, attempt: int = 0) -> dict[str, Any]:
    """Random parameters of cell `index`; `attempt` counts the draws that were not wanted. The same for the same numbers."""
    return {
        name: _plain(_parameter(name, json.dumps(spec)).ppf(_uniform(seed, index, attempt, name)), spec)
        for name, spec in specs.items()
    }


def suggest(
    specs: Mapping[str, Spec], metric: Mapping[str, Any], seed: int, index: int, cells: Sequence[Observed]
) -> dict[str, Any]:
    """Parameters that W&B's Bayesian search tries next, as cell `index`: the greatest expected improvement of a Gaussian
    process over 1,000 random points; random ones until two cells have ended."""
    import numpy as np

    bayes = _engine("bayes_search")
    config = {
        "method": "bayes",
        "metric": dict(metric),
        "parameters": {name: dict(spec) for name, spec in specs.items()},
    }
    before = np.random.get_state()  # noqa: NPY002  what the engine draws from
    np.random.seed(_number("bayes", seed, index) % 2**32)  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fit to a few points
            found = bayes.bayes_search_next_run([_run(cell, metric["name"]) for cell in cells], config)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return {name: _plain(found.config[name]["value"], spec) for name, spec in specs.items()}


def ended_early(
    early_terminate: Mapping[str, Any], metric: Mapping[str, Any], cells: Sequence[Observed]
) -> dict[str, str]:
    """Name -> why, of the running cells that W&B's hyperband ends: at a bracket, worse than the best 1 in eta there."""
    hyperband = _engine("hyperband_stopping")
    config = {"metric": dict(metric), "early_terminate": dict(early_terminate)}
    runs = [_run(cell, metric["name"]) for cell in cells]
    sign = -1.0 if metric.get("goal") == "maximize" else 1.0
    reasons = {}
    for run in hyperband.hyperband_stop_runs(runs, config):
        values = run.metric_history(metric["name"], filter_invalid=True)
        info = run.early_terminate_info
        band, threshold = [
            pair for pair in zip(info["bands"], info["thresholds"], strict=True) if pair[0] < len(values)
        ][-1]
        best = min(sign * value for value in values) * sign
        reasons[run.name] = (
            f"hyperband: {metric['name']} is {best:.6g} at best after {len(values)} values; the best 1 in "
            f"{early_terminate['eta']:g} of the cells had {sign * threshold:.6g} at value {band + 1}"
        )
    return reasons


@functools.lru_cache(maxsize=1024)
def _parameter(name: str, spec: str) -> Any:
    """Checked against all of the engine's schemas, which takes it some milliseconds."""
    return _engine("params").HyperParameter(name, json.loads(spec))


def _run(cell: Observed, metric: str) -> Any:
    """By the aliases of its fields: under pydantic 2 their names are not taken."""
    return _engine("run").SweepRun(
        name=cell.name,
        state=cell.state,
        config={name: {"value": value} for name, value in cell.parameters.items()},
        sampledHistory=[{metric: value} for value in cell.history],
        summaryMetrics={} if cell.last is None else {metric: cell.last},
    )


def require_engine() -> None:
    """InputError where the engine, or what it needs, isn't installed."""
    _engine("hyperband_stopping")


def _engine(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was written for pydantic 1
        try:
            return importlib.import_module(f"sweeps.{module}")
        except ModuleNotFoundError as error:
            missing = str(error.name).partition(".")[0]
            raise InputError(
                f"a search and early_terminate need W&B's engine; {missing} is missing: pip install 'vitlight[search]'"
            ) from None


def _uniform(*key: object) -> float:
    """Inside (0, 1): at its ends the engine steps out of what it draws from."""
    return ((_number(*key) >> 12) + 0.5) / 2**52


def _number(*key: object) -> int:
    """64 bits that are a function of the key alone."""
    text = "\0".join(map(str, key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _plain(value: Any, spec: Spec) -> Any:
    """A Python value, a number with six digits and within its limits."""
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, float) or "values" in spec or "value" in spec:
        return value
    rounded = float(f"{value:.{_DIGITS}g}")
    if "q" not in spec and "min" in spec:
        return min(max(rounded, float(spec["min"])), float(spec["max"]))
    return rounded

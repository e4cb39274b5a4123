"""What a search draws from: W&B's distributions of a parameter, and when it ends cells early, as a sweep file writes them.

Names, limits and defaults are those of W&B's own engine (`sweeps` 0.2.0, config/schema.json). What it would take and then
misread is refused here.
"""

import math
from collections.abc import Mapping
from typing import Any

from vitlight.errors import InputError, did_you_mean

__all__ = [
    "METHODS",
    "RANGE_KEYS",
    "Spec",
    "check_early_terminate",
    "check_probabilities",
    "check_run_cap",
    "listed_range",
    "range_spec",
]

Spec = dict[str, Any]  # a parameter in W&B's words, `distribution` and defaults included

METHODS = ("grid", "random", "bayes")
_LIMITS = ("min", "max")
_SHAPES = {"mu": 0.0, "sigma": 1.0, "a": 1.0, "b": 1.0, "q": 1.0}  # with W&B's defaults
_RANGES: dict[str, tuple[str, ...]] = {
    "uniform": _LIMITS,
    "int_uniform": _LIMITS,
    "q_uniform": (*_LIMITS, "q"),
    "log_uniform_values": _LIMITS,
    "inv_log_uniform_values": _LIMITS,
    "q_log_uniform_values": (*_LIMITS, "q"),
    "normal": ("mu", "sigma"),
    "q_normal": ("mu", "sigma", "q"),
    "log_normal": ("mu", "sigma"),
    "q_log_normal": ("mu", "sigma", "q"),
    "beta": ("a", "b"),
    "q_beta": ("a", "b", "q"),
}
_OF_EXPONENTS = ("log_uniform", "inv_log_uniform", "q_log_uniform")
_GRID_RANGES = ("int_uniform", "q_uniform")
RANGE_KEYS = (*_LIMITS, *_SHAPES)
_HYPERBAND_KEYS = ("type", "min_iter", "max_iter", "s", "eta")


def range_spec(name: str, spec: Mapping[str, Any]) -> Spec:
    """A parameter that is drawn from a range, complete. What has limits alone is `int_uniform` where both are whole numbers,
    else `uniform`. InputError: what W&B doesn't know, or an empty range."""
    kind = spec.get("distribution", _implied(spec))
    if kind in _OF_EXPONENTS:
        raise InputError(
            f"parameter {name} has distribution {kind}, whose limits are exponents of e; write {kind}_values and the "
            "limits themselves"
        )
    if kind not in _RANGES:
        raise InputError(f"parameter {name} has distribution {kind!r}{_known(str(kind))}")
    takes = _RANGES[kind]
    for key in spec:
        if key != "distribution" and key not in takes:
            raise InputError(f"parameter {name} has {key!r}, which {kind} doesn't take; it takes {', '.join(takes)}")
    complete = {key: spec[key] if key in spec else _SHAPES.get(key) for key in takes}
    for key, value in complete.items():
        _check_number(name, kind, key, value)
    low, high = complete.get("min"), complete.get("max")
    if low is not None and high is not None and not low < high:
        raise InputError(f"parameter {name} has min {low}, which is not below its max {high}")
    return {"distribution": kind, **complete}


def _implied(spec: Mapping[str, Any]) -> str:
    return "int_uniform" if all(type(spec.get(key)) is int for key in _LIMITS) else "uniform"


def _known(kind: str) -> str:
    return did_you_mean(kind, _RANGES) or f"; known: {', '.join(_RANGES)}"


def _check_number(name: str, kind: str, key: str, value: Any) -> None:
    if value is None:
        raise InputError(f"parameter {name} has no {key}; {kind} needs min and max")
    if isinstance(value, str):
        raise InputError(
            f"parameter {name} has {key} {value!r}, which is text; YAML reads 1.0e-3 as a number, not 1e-3"
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"parameter {name} has {key} {value!r}; it must be a finite number")
    if kind == "int_uniform" and type(value) is not int:
        raise InputError(f"parameter {name} has {key} {value!r}; the limits of int_uniform are whole numbers")
    is_positive = key in ("sigma", "a", "b", "q") or (key == "min" and kind.endswith("_values"))
    if is_positive and not value > 0:
        raise InputError(f"parameter {name} has {key} {value!r}; it must be above 0 for {kind}")


def listed_range(name: str, spec: Spec) -> list[int | float]:
    """The values that a grid makes of a range, as W&B's does: both limits of `int_uniform`, the upper one of `q_uniform` not
    included. InputError: a range of another kind."""
    kind = spec["distribution"]
    if kind not in _GRID_RANGES:
        raise InputError(
            f"parameter {name} has distribution {kind}, which a grid can't list; write its values, or method: random and "
            "run_cap"
        )
    low, high = spec["min"], spec["max"]
    if kind == "int_uniform":
        return list(range(low, high + 1))
    return [low + place * spec["q"] for place in range(math.ceil((high - low) / spec["q"]))]


def check_probabilities(name: str, values: list[Any], probabilities: Any, method: str) -> None:
    """InputError: not one for each value, or not a distribution; a method that can't use them."""
    if method != "random":
        raise InputError(f"parameter {name} has probabilities, which method {method} can't use; remove them")
    numbers = probabilities if isinstance(probabilities, list) else []
    if len(numbers) != len(values) or not all(type(each) in (int, float) and each >= 0 for each in numbers):
        raise InputError(
            f"parameter {name} has probabilities {probabilities!r}; give a number from 0 to 1 for each of its "
            f"{len(values)} values"
        )
    if not math.isclose(sum(numbers), 1.0, abs_tol=1e-8):
        raise InputError(f"parameter {name} has probabilities that sum to {sum(numbers):g}, not to 1")


def check_run_cap(run_cap: Any, method: str) -> int | None:
    """The number of cells at most. InputError: none for a search, which has no end of its own."""
    if run_cap is None and method != "grid":
        raise InputError(f"method: {method} needs run_cap, the number of cells")
    if run_cap is not None and (type(run_cap) is not int or run_cap < 1):
        raise InputError(f"run_cap is {run_cap!r}; it is a number of cells, at least 1")
    return run_cap


def check_early_terminate(spec: Any, metric: Mapping[str, str] | None) -> dict[str, Any] | None:
    """W&B's `early_terminate`, complete. InputError: anything but its hyperband, or no metric to compare."""
    if spec is None:
        return None
    written = "write early_terminate: {type: hyperband, min_iter: 2, eta: 3}, or max_iter and s"
    if not isinstance(spec, dict) or spec.get("type") != "hyperband":
        raise InputError(f"early_terminate is {spec!r}; {written}")
    for key in spec:
        if key not in _HYPERBAND_KEYS:
            raise InputError(f"early_terminate has {key!r}{did_you_mean(str(key), _HYPERBAND_KEYS)}; {written}")
    if ("min_iter" in spec) == ("max_iter" in spec) or ("s" in spec) != ("max_iter" in spec):
        raise InputError(f"early_terminate has {', '.join(spec)}; {written}")
    for key in ("min_iter", "max_iter", "s"):
        if key in spec and (type(spec[key]) is not int or spec[key] < 1):
            raise InputError(f"early_terminate has {key} {spec[key]!r}; it is a whole number, at least 1")
    eta = spec.get("eta", 3)
    if type(eta) not in (int, float) or not eta > 1:
        raise InputError(f"early_terminate has eta {eta!r}; it is a number above 1, of which one part in eta goes on")
    if "max_iter" in spec and spec["max_iter"] / eta < 1:
        raise InputError(f"early_terminate has max_iter {spec['max_iter']} below eta {eta:g}, so it looks at no value")
    if metric is None:
        raise InputError(
            "early_terminate compares values of the metric; write metric: {name: val/top1, goal: maximize}"
        )
    return {**spec, "eta": eta}

"""The `parameters` of a sweep file: which there are, what each one's values are, and all that can be wrong with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from vitlight.errors import InputError, did_you_mean
from vitlight.sweep.search_space import RANGE_KEYS, Spec, check_probabilities, listed_range, range_spec

__all__ = ["Scalar", "Value", "check_value", "complete_spec", "read_parameters", "values_of"]

Scalar = bool | int | float | str
Value = Scalar | list[Scalar] | dict[str, Any]

PARAMETER_KEYS = ("value", "values", "probabilities", "parameters", "distribution", *RANGE_KEYS)


def read_parameters(group: Any, prefix: str) -> Iterator[tuple[str, Spec]]:
    """(dotted name, what the file says of it) of every parameter in a `parameters` mapping, groups inside it included."""
    if not isinstance(group, dict) or not group:
        raise InputError(f"{prefix}parameters is {group!r}; write at least one NAME: {{values: [...]}}")
    seen: set[str] = set()
    for key, spec in group.items():
        if not isinstance(key, str):
            raise InputError(
                f"parameter {prefix}{key!r} is not text; YAML reads on, off, yes and no as booleans: quote it"
            )
        name = f"{prefix}{key}"
        for dotted, found in (
            read_parameters(spec["parameters"], f"{name}.") if _is_group(name, spec) else [(name, spec)]
        ):
            if dotted in seen:
                raise InputError(f"parameter {dotted} is given twice, nested and dotted; keep one")
            seen.add(dotted)
            yield dotted, found


def _is_group(name: str, spec: Any) -> bool:
    if not isinstance(spec, dict):
        raise InputError(f"parameter {name} is {spec!r}; write {{value: {spec}}} or {{values: [...]}}")
    for key in spec:
        if key not in PARAMETER_KEYS:
            raise InputError(
                f"parameter {name} has {key!r}, which no sweep can use{did_you_mean(str(key), PARAMETER_KEYS)}; "
                "write value, values, a distribution or nested parameters"
            )
    kinds = [key for key in ("value", "values", "parameters") if key in spec]
    if len(kinds) > 1 or not spec:
        raise InputError(
            f"parameter {name} has {' and '.join(kinds) or 'no values'}; give one of value, values, parameters"
        )
    if not kinds:
        return False
    _check_listed(name, kinds[0], spec)
    return kinds[0] == "parameters"


def _check_listed(name: str, kind: str, spec: Spec) -> None:
    """InputError: something beside value, values or parameters that belongs to none of them, and would be ignored."""
    implied = {"value": "constant", "values": "categorical", "parameters": None}[kind]
    if "probabilities" in spec and kind == "values":
        implied = "categorical_w_probabilities"
    if spec.get("distribution", implied) != implied:
        raise InputError(f"parameter {name} has distribution {spec['distribution']!r} beside its {kind}: remove it")
    allowed = {kind, "distribution"} | ({"probabilities"} if kind == "values" else set())
    if extra := [key for key in spec if key not in allowed]:
        raise InputError(f"parameter {name} has {extra[0]!r} beside its {kind}; keep one of them")


def complete_spec(name: str, spec: Spec, values: tuple[Value, ...]) -> Spec:
    """As W&B's engine takes it: what it is drawn from, with every default."""
    if not values:
        return range_spec(name, spec)
    if len(values) == 1:
        return {"distribution": "constant", "value": values[0]}
    if "probabilities" in spec:
        return {
            "distribution": "categorical_w_probabilities",
            "values": list(values),
            "probabilities": spec["probabilities"],
        }
    return {"distribution": "categorical", "values": list(values)}


def values_of(name: str, spec: Spec, method: str) -> tuple[Value, ...]:
    """Those it lists; none where a search draws it from a range."""
    if "values" not in spec and "value" not in spec:
        complete = range_spec(name, spec)
        return tuple(listed_range(name, complete)) if method == "grid" else ()
    values = spec["values"] if "values" in spec else [spec["value"]]
    if not isinstance(values, list) or not values:
        raise InputError(f"parameter {name} has values {values!r}; write a list with at least one value")
    first_with: dict[object, Any] = {}
    for value in values:
        check_value(name, value)
        # 1 and "1" give the same argument; 1 and 1.0 are the same number; True and 1 are neither.
        number = ("number", value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        for identity in filter(None, (("text", str(value)), number)):
            if identity in first_with:
                raise InputError(f"parameter {name} has {value!r} twice (as {first_with[identity]!r}); remove one")
        first_with |= {("text", str(value)): value} | ({number: value} if number else {})
    if "probabilities" in spec:
        check_probabilities(name, values, spec["probabilities"], method)
    return tuple(values)


def check_value(name: str, value: Any) -> None:
    """A scalar, a list of scalars, or a mapping of names to such or to lists and mappings of any depth."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(
                    f"parameter {name} has the name {key!r}, which is not text; YAML reads on, off, yes and no as "
                    "booleans: quote it"
                )
            _check_inner(f"{name}: {key}", item)
        return
    for item in value if isinstance(value, list) else [value]:
        _check_scalar(name, item)


def _check_inner(name: str, value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _check_inner(name, item)
    else:
        check_value(name, value)


def _check_scalar(name: str, value: Any) -> None:
    if value is None:
        raise InputError(f'parameter {name} has null, which W&B hands over as the text None; quote it: "null"')
    if not isinstance(value, Scalar):
        raise InputError(
            f"parameter {name} has {value!r} of type {type(value).__name__}; "
            "values are numbers, text, booleans, lists of them or mappings: quote it"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"parameter {name} has {value!r}; a value must be finite")

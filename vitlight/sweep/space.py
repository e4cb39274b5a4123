"""A sweep file in W&B's own format becomes a list of cells: the command lines of its runs.

    name: quickstart
    method: grid
    metric: {name: val/top1, goal: maximize}
    command: ["${env}", vitlight, fit, --config=experiments/base.yaml, "${args}"]
    parameters:
      model.arch: {values: [vit_ti16, vit_s16]}
      seed_everything: {values: [0, 1]}

`wandb sweep` and `wandb agent` run the same file. Parameters are sorted by name and the last one varies fastest, as in
W&B's grid search. What W&B's format can say and a grid of complete runs can't honour is refused, never ignored.

Settings that go together are one axis: a parameter whose values are mappings. W&B hands a mapping over in Python's
notation, `--config={'model': {'arch': 'vit_s16', 'optimizer': {'lr': 0.001}}}`, which `vitlight fit` reads as it reads a
file; `config` reaches any setting, a group's name (`model`, `data`) those of the group, and names of files do as well.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlight.errors import InputError, did_you_mean
from vitlight.sweep.command import DEFAULT_COMMAND, expand_command, vitlight_arguments

__all__ = ["Cell", "Scalar", "Sweep", "Value", "flattened", "load_sweep"]

Scalar = bool | int | float | str
Value = Scalar | list[Scalar] | dict[str, Any]

# entity, project and description place the sweep on W&B's server and change no run.
TOP_LEVEL_KEYS = ("name", "method", "metric", "command", "program", "parameters", "entity", "project", "description")
REFUSED_KEYS = {
    "early_terminate": "every cell runs to its end, so that results are comparable; remove it",
    "run_cap": "every cell of a grid is run; remove it, or list fewer values",
}
CONFIG = "config"  # the argument that takes settings of every group
PARAMETER_KEYS = ("value", "values", "parameters", "distribution")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    index: int  # its place in the grid, from 0
    parameters: dict[str, Value]  # dotted name -> value, sorted by name
    args: tuple[str, ...]  # what follows `vitlight`: fit --config=... --model.arch=...
    label: str  # the swept settings as text; those with a single value are left out

    @property
    def settings(self) -> dict[str, Any]:
        """Its parameters, mappings taken apart: dotted setting -> value."""
        return flattened(self.parameters)

    @property
    def id(self) -> str:
        """Ten hex digits of the SHA-256 of its arguments: the same cell has the same id in every sweep file."""
        return hashlib.sha256("\0".join(self.args).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file; `parameters` maps each dotted name to its values, sorted by name."""

    name: str
    command: tuple[str, ...]
    parameters: dict[str, tuple[Value, ...]]
    metric: dict[str, str] | None
    path: Path
    program: str | None = None

    def cells(self) -> list[Cell]:
        """Every combination of values, the last parameter varying fastest."""
        grid = itertools.product(*self.parameters.values())
        swept = self.swept_settings()
        return [
            self._cell(index, dict(zip(self.parameters, values, strict=True)), swept)
            for index, values in enumerate(grid)
        ]

    def swept_settings(self) -> set[str]:
        """The settings that have more than one value, or are there for some values of a parameter only."""
        swept: set[str] = set()
        for name, values in self.parameters.items():
            each = [{key: repr(item) for key, item in flattened({name: value}).items()} for value in values]
            swept |= {key for one in each for key in one if any(other.get(key) != one[key] for other in each)}
        return swept

    def _cell(self, index: int, parameters: dict[str, Value], swept: set[str]) -> Cell:
        settings = flattened(parameters)
        named = {name: value for name, value in settings.items() if name in swept} or settings
        return Cell(
            index=index,
            parameters=parameters,
            args=vitlight_arguments(expand_command(self.command, self.program, parameters)),
            label=" ".join(f"{name}={value}" for name, value in named.items()),
        )


def flattened(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by dotted setting: what is nested in `config` belongs to the top, what is in `model` to `model.`.

    A later parameter overrides an earlier one, as a later argument does. An empty mapping is a value of its own.
    """
    flat: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping) and value:
            inner = flattened({str(key): item for key, item in value.items()})
            flat |= inner if name == CONFIG else {f"{name}.{key}": item for key, item in inner.items()}
        else:
            flat[name] = value
    return flat


def load_sweep(path: str | Path) -> Sweep:
    """The sweep that a YAML file describes, checked as far as can be without the experiment's settings.

    InputError: no such file, not YAML, unknown keys, a method other than grid, null or duplicate values, a command that
    is not `vitlight fit`.
    """
    path = Path(path)
    try:
        sweep = _sweep_from(_read_yaml(path), path)
        sweep.cells()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return sweep


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    class UniqueKeyLoader(yaml.SafeLoader):
        """SafeLoader keeps the last of two equal keys and drops the first without a word; this one refuses."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise InputError(f"line {key.start_mark.line + 1}: {key.value} is written twice; remove one")
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"holds {type(content).__name__}, not a mapping with method, command and parameters")
    return content


def _sweep_from(content: dict[Any, Any], path: Path) -> Sweep:
    for key in content:
        if key in REFUSED_KEYS:
            raise InputError(f"{key} is not supported: {REFUSED_KEYS[key]}")
        if key not in TOP_LEVEL_KEYS:
            raise InputError(f"unknown key {key!r}{did_you_mean(str(key), TOP_LEVEL_KEYS)}")
    method = content.get("method")
    if method != "grid":
        raise InputError(f"method is {method!r}; supported: grid; write method: grid and list the values of each axis")
    name = content.get("name", path.stem)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"name is {name!r}; it names a folder: letters, digits, '.', '_' and '-', no space or slash")
    program = content.get("program")
    if program is not None and not isinstance(program, str):
        raise InputError(f"program is {program!r}; write program: vitlight, or leave it out")
    command = content.get("command", DEFAULT_COMMAND)
    if not isinstance(command, list | tuple) or not all(isinstance(word, str | int | float) for word in command):
        raise InputError(f'command is {command!r}; write a list of words: ["${{env}}", vitlight, fit, "${{args}}"]')
    parameters = dict(_parameters(content.get("parameters"), ""))
    return Sweep(
        name=name,
        command=tuple(str(word) for word in command),
        parameters={name: parameters[name] for name in sorted(parameters)},
        metric=_metric(content.get("metric")),
        path=path,
        program=program,
    )


def _metric(metric: Any) -> dict[str, str] | None:
    if metric is None:
        return None
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str) or set(metric) - {"name", "goal"}:
        raise InputError(f"metric is {metric!r}; write metric: {{name: val/top1, goal: maximize}}")
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise InputError(f"metric.goal is {metric['goal']!r}; it must be minimize or maximize")
    return dict(metric)


def _parameters(group: Any, prefix: str) -> Iterator[tuple[str, tuple[Value, ...]]]:
    """(dotted name, values) of every parameter in a `parameters` mapping, groups inside it included."""
    if not isinstance(group, dict) or not group:
        raise InputError(f"{prefix}parameters is {group!r}; write at least one NAME: {{values: [...]}}")
    seen: set[str] = set()
    for key, spec in group.items():
        if not isinstance(key, str):
            raise InputError(
                f"parameter {prefix}{key!r} is not text; YAML reads on, off, yes and no as booleans: quote it"
            )
        name = f"{prefix}{key}"
        found = (
            [(name, _values(name, spec))] if not _is_group(name, spec) else _parameters(spec["parameters"], f"{name}.")
        )
        for dotted, values in found:
            if dotted in seen:
                raise InputError(f"parameter {dotted} is given twice, nested and dotted; keep one")
            seen.add(dotted)
            yield dotted, values


def _is_group(name: str, spec: Any) -> bool:
    if not isinstance(spec, dict):
        raise InputError(f"parameter {name} is {spec!r}; write {{value: {spec}}} or {{values: [...]}}")
    for key in spec:
        if key not in PARAMETER_KEYS:
            raise InputError(
                f"parameter {name} has {key!r}, which a grid can't use{did_you_mean(str(key), PARAMETER_KEYS)}; "
                "write value, values or nested parameters"
            )
    kinds = [key for key in ("value", "values", "parameters") if key in spec]
    if len(kinds) != 1:
        raise InputError(
            f"parameter {name} has {' and '.join(kinds) or 'no values'}; give one of value, values, parameters"
        )
    implied = {"value": "constant", "values": "categorical"}.get(kinds[0])
    if spec.get("distribution", implied) != implied:
        raise InputError(
            f"parameter {name} has distribution {spec['distribution']!r}; a grid lists its values: remove it"
        )
    return kinds[0] == "parameters"


def _values(name: str, spec: Mapping[str, Any]) -> tuple[Value, ...]:
    values = spec["values"] if "values" in spec else [spec["value"]]
    if not isinstance(values, list) or not values:
        raise InputError(f"parameter {name} has values {values!r}; write a list with at least one value")
    first_with: dict[object, Any] = {}
    for value in values:
        _check_value(name, value)
        # 1 and "1" give the same argument; 1 and 1.0 are the same number; True and 1 are neither.
        number = ("number", value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        for identity in filter(None, (("text", str(value)), number)):
            if identity in first_with:
                raise InputError(f"parameter {name} has {value!r} twice (as {first_with[identity]!r}); remove one")
        first_with |= {("text", str(value)): value} | ({number: value} if number else {})
    return tuple(values)


def _check_value(name: str, value: Any) -> None:
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
        _check_value(name, value)


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

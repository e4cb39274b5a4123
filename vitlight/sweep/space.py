"""A sweep file in W&B's own format becomes a list of cells: the command lines of its runs.

    name: quickstart
    method: grid
    metric: {name: val/top1, goal: maximize}
    command: ["${env}", vitlight, fit, --config=experiments/base.yaml, "${args}"]
    parameters:
      model.arch: {values: [vit_ti16, vit_s16]}
      seed_everything: {values: [0, 1]}

`wandb sweep` and `wandb agent` run the same file. Parameters are sorted by name and the last one varies fastest, as in
W&B's grid search; `method: random` and `bayes` draw them from W&B's distributions (see `search`). What W&B's format can
say and can't be honoured here is refused, never ignored.

Settings that go together are one axis: a parameter whose values are mappings. W&B hands a mapping over in Python's
notation, `--config={'model': {'arch': 'vit_s16', 'optimizer': {'lr': 0.001}}}`, which `vitlight fit` reads as it reads a
file; `config` reaches any setting, a group's name (`model`, `data`) those of the group, and names of files do as well.
"""

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlight.errors import InputError, did_you_mean
from vitlight.sweep.command import DEFAULT_COMMAND, expand_command, vitlight_arguments
from vitlight.sweep.parameters import Scalar, Value, check_value, complete_spec, read_parameters, values_of
from vitlight.sweep.search import Search
from vitlight.sweep.search_space import METHODS, Spec, check_early_terminate, check_run_cap

__all__ = ["Cell", "Scalar", "Sweep", "Value", "check_value", "flattened", "load_sweep"]

# entity, project and description place the sweep on W&B's server and change no run.
TOP_LEVEL_KEYS = (
    *("name", "method", "metric", "command", "program", "parameters", "run_cap", "early_terminate"),
    *("entity", "project", "description"),
)
CONFIG = "config"  # the argument that takes settings of every group
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    index: int  # its place in the grid, or in the order of a search, from 0
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
    """A checked sweep file; `parameters` maps each dotted name to its values, sorted by name: none for one that a search
    draws from a range."""

    name: str
    command: tuple[str, ...]
    parameters: dict[str, tuple[Value, ...]]
    metric: dict[str, str] | None
    path: Path
    program: str | None = None
    added: tuple[dict[str, Value], ...] = ()  # the parameters of cells beside the grid (see `added`)
    search: Search | None = None  # None: a grid
    run_cap: int | None = None
    early_terminate: dict[str, Any] | None = None

    def cells(self) -> list[Cell]:
        """Every combination of values, the last parameter varying fastest, up to `run_cap`, or what a search knows of its
        cells; then those that were added."""
        swept = self.swept_settings()
        if self.search is not None:
            listed = [(each.index, each.parameters) for each in self.search.suggestions() if not each.refused]
            num_listed = self.search.run_cap
        else:
            grid = itertools.islice(itertools.product(*self.parameters.values()), self.run_cap)
            listed = [(index, dict(zip(self.parameters, values, strict=True))) for index, values in enumerate(grid)]
            num_listed = len(listed)
        added = enumerate(self.added, start=num_listed)
        return [self.cell(index, parameters, swept) for index, parameters in (*listed, *added)]

    def swept_settings(self) -> set[str]:
        """The settings that have more than one value, or are there for some values of a parameter only."""
        swept = {name for name, values in self.parameters.items() if not values}
        for name, values in self.parameters.items():
            each = [{key: repr(item) for key, item in flattened({name: value}).items()} for value in values]
            swept |= {key for one in each for key in one if any(other.get(key) != one[key] for other in each)}
        first = {key: repr(item) for key, item in flattened({k: v[0] for k, v in self.parameters.items() if v}).items()}
        beside = [(key, repr(item)) for one in self.added for key, item in flattened(one).items()]
        return swept | {key for key, item in beside if first.get(key) != item}

    def search_note(self, num_known: int) -> str | None:
        """That a table of so many cells doesn't show all, where that is so."""
        if self.search is None or self.search.method != "bayes" or num_known >= self.search.run_cap:
            return None
        return f"bayes: {num_known} of {self.search.run_cap} cells are known; the others depend on results"

    def cell(self, index: int, parameters: dict[str, Value], swept: set[str]) -> Cell:
        """The cell with these parameters, named by the `swept` settings."""
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


def load_sweep(path: str | Path, search_seed: int | None = None, name: str | None = None) -> Sweep:
    """The sweep that a YAML file describes, checked as far as can be without the experiment's settings.

    search_seed: of the random numbers of a search; None: the one that its directory has, or 0. name: where the file has
    none; None: the file's own.
    InputError: no such file, not YAML, unknown keys, an unknown method, null or duplicate values, a command that
    is not `vitlight fit`.
    """
    path = Path(path)
    try:
        sweep = _sweep_from({"name": name or path.stem} | _read_yaml(path), path, search_seed)
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


def _sweep_from(content: dict[Any, Any], path: Path, search_seed: int | None) -> Sweep:
    for key in content:
        if key not in TOP_LEVEL_KEYS:
            raise InputError(f"unknown key {key!r}{did_you_mean(str(key), TOP_LEVEL_KEYS)}")
    method = content.get("method")
    if method not in METHODS:
        raise InputError(
            f"method is {method!r}; it is one of {', '.join(METHODS)}; a grid lists the values of each axis"
        )
    name = content["name"]
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"name is {name!r}; it names a folder: letters, digits, '.', '_' and '-', no space or slash")
    program = content.get("program")
    if program is not None and not isinstance(program, str):
        raise InputError(f"program is {program!r}; write program: vitlight, or leave it out")
    command = content.get("command", DEFAULT_COMMAND)
    if not isinstance(command, list | tuple) or not all(isinstance(word, str | int | float) for word in command):
        raise InputError(f'command is {command!r}; write a list of words: ["${{env}}", vitlight, fit, "${{args}}"]')
    specs = dict(sorted(read_parameters(content.get("parameters"), "")))
    metric = _metric(content.get("metric"), method)
    run_cap = check_run_cap(content.get("run_cap"), method)
    early_terminate = check_early_terminate(content.get("early_terminate"), metric)
    parameters = {name: values_of(name, spec, method) for name, spec in specs.items()}
    search = None
    if method != "grid":
        words = tuple(str(word) for word in (*command, program or ""))
        search = _search(method, specs, parameters, run_cap, metric, search_seed, words)
    elif search_seed is not None:
        raise InputError(f"--search-seed {search_seed} is about method: random and bayes; a grid draws nothing")
    return Sweep(
        name=name,
        command=tuple(str(word) for word in command),
        parameters=parameters,
        metric=metric,
        path=path,
        program=program,
        search=search,
        run_cap=run_cap,
        early_terminate=early_terminate,
    )


def _metric(metric: Any, method: str) -> dict[str, str] | None:
    if metric is None:
        return None
    keys = {"name", "goal"} | ({"impute"} if method == "bayes" else set())
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str) or set(metric) - keys:
        raise InputError(f"metric is {metric!r}; write metric: {{name: val/top1, goal: maximize}}")
    for key, known in (("goal", ("minimize", "maximize")), ("impute", ("worst", "best", "latest"))):
        if metric.get(key, known[0]) not in known:
            raise InputError(f"metric.{key} is {metric[key]!r}; it must be {', '.join(known[:-1])} or {known[-1]}")
    return dict(metric)


def _search(
    method: Any,
    specs: Mapping[str, Spec],
    parameters: Mapping[str, tuple[Value, ...]],
    run_cap: int | None,
    metric: dict[str, str] | None,
    seed: int | None,
    command: tuple[str, ...],
) -> Search:
    """InputError: nothing to search, or no metric to search by."""
    assert run_cap is not None
    if method == "bayes" and metric is None:
        raise InputError("method: bayes searches by the metric; write metric: {name: val/top1, goal: maximize}")
    complete = {name: complete_spec(name, specs[name], values) for name, values in parameters.items()}
    if all("value" in spec for spec in complete.values()):
        raise InputError(f"method: {method} has nothing to search: every parameter has one value")
    return Search(method, complete, run_cap, metric, seed, command=command)

"""A smaller sweep written as a file of its own, which `vitlight sweep` and `wandb sweep` take as they take the first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError
from vitlight.sweep.budget import SEED
from vitlight.sweep.space import CONFIG, flattened

if TYPE_CHECKING:
    from vitlight.sweep.plan import PlannedCell
    from vitlight.sweep.space import Sweep

__all__ = ["kept_parameters", "scaled_parameters", "write_sweep"]

DURATION = "model.duration."
_IN_IMAGES = ("samples", "min_samples")


def write_sweep(path: Path, sweep: Sweep, parameters: Mapping[str, Mapping[str, Any]], note: str) -> None:
    """Write `sweep` with other parameters to `path`. Its name stays, so that runs which are finished already count."""
    import yaml

    content = {
        "name": sweep.name,
        **({"program": sweep.program} if sweep.program is not None else {}),
        "method": "grid",
        **({"metric": dict(sweep.metric)} if sweep.metric is not None else {}),
        **({"run_cap": sweep.run_cap} if sweep.run_cap is not None else {}),
        **({"early_terminate": dict(sweep.early_terminate)} if sweep.early_terminate is not None else {}),
        "command": list(sweep.command),
        "parameters": {name: dict(spec) for name, spec in parameters.items()},
    }
    text = yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True)
    comment = "".join(f"# {line}\n" for line in note.splitlines())
    try:
        path.write_text(comment + text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {path} can't be written ({error.strerror}); name another file") from None


def kept_parameters(sweep: Sweep, kept: Sequence[PlannedCell]) -> dict[str, dict[str, Any]]:
    """Parameters whose grid is these cells and no other: shorter lists where they make a grid, else one `config` axis whose
    values are what the cells have besides their seed, or with it, where not all have the same seeds."""
    axes = {
        name: [value for value in values if any(item.cell.parameters[name] == value for item in kept)]
        for name, values in sweep.parameters.items()
    }
    combinations = {_key(item.cell.parameters) for item in kept}
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if len(grid) == len(combinations) and all(_key(cell) in combinations for cell in grid):
        return {name: _spec(values) for name, values in axes.items()}
    fixed = {
        name for name, values in sweep.parameters.items() if len(values) == 1 and not isinstance(values[0], Mapping)
    }
    fixed -= {CONFIG}
    for apart in (fixed | {SEED}, fixed):
        coupled = {_key(rest): rest for item in kept for rest in [_without(apart, item.cell.parameters)]}
        others = {name: values for name, values in axes.items() if name in apart}
        if len(coupled) * math.prod(map(len, others.values())) == len(combinations):
            break
    configs = [_as_config(rest) for rest in coupled.values()]
    return {CONFIG: {"values": configs}, **{name: _spec(values) for name, values in others.items()}}


def scaled_parameters(sweep: Sweep, planned: Sequence[PlannedCell], factor: float) -> dict[str, dict[str, Any]]:
    """The sweep's parameters with every duration `factor` times as long. InputError where durations come from files that
    cells don't have in common."""
    scaled = {
        name: _spec([_scaled(name, value, factor) for value in values]) for name, values in sweep.parameters.items()
    }
    swept = {key for name, values in sweep.parameters.items() for value in values for key in flattened({name: value})}
    for name in ("epochs", "samples", "train_flops", "min_samples"):
        setting = f"{DURATION}{name}"
        if setting in swept:
            continue
        lengths = {getattr(item.run.settings.model.duration, name) for item in planned if item.run.settings is not None}
        if len(lengths) > 1:
            raise InputError(
                f"{sweep.path}: {setting} is {' or '.join(sorted(map(str, lengths)))}, as the cells' files have it, which "
                "one parameter can't scale; use --budget-by cells, or make it a parameter"
            )
        length = next(iter(lengths), None)
        if length:
            scaled[setting] = {"value": _scaled_length(name, length, factor)}
    return {name: scaled[name] for name in sorted(scaled)}


def _spec(values: Sequence[Any]) -> dict[str, Any]:
    return {"value": values[0]} if len(values) == 1 else {"values": list(values)}


def _key(parameters: Mapping[str, Any]) -> str:
    return repr(sorted(parameters.items(), key=lambda pair: pair[0]))


def _without(names: Container[str], parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name not in names}


def _as_config(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as one nested mapping; a `config` that names a file is read."""
    import yaml

    nested: dict[str, Any] = {}
    for name, value in parameters.items():
        if name == CONFIG and isinstance(value, str):
            value = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
        _merge(nested, value if name == CONFIG else _nested(name, value))
    return nested


def _nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for name, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = dict(value) if isinstance(value, Mapping) else value


def _scaled(name: str, value: Any, factor: float) -> Any:
    """A parameter's value with the durations in it scaled."""
    if isinstance(value, Mapping):
        prefix = "" if name == CONFIG else f"{name}."
        return {key: _scaled(f"{prefix}{key}", item, factor) for key, item in value.items()}
    is_length = name.startswith(DURATION) and isinstance(value, int | float) and not isinstance(value, bool)
    return _scaled_length(name.removeprefix(DURATION), value, factor) if is_length else value


def _scaled_length(name: str, length: float, factor: float) -> float:
    return int(length * factor) if name in _IN_IMAGES else float(f"{length * factor:.6g}")

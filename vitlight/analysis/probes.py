"""What frozen features of a run are worth, as columns of its row: `few_shot/10_shot`, `knn/20`, `linear/ridge`, on other
images than its own `cifar10/few_shot/10_shot`.

They are in its `result.json`, measured on `val` while it trained, and in the `probe.json` that `vitlight probe` leaves
beside it, which takes precedence. `probe_split` says on what they were measured.
"""

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["is_probe_fraction", "probe_fractions", "read_probes"]

_FILE, _SCHEMA = "probe.json", 1
_SPLIT = "probe_split"
_FRACTION = re.compile(r"(.+/)?(few_shot|knn|linear)/\w+")


def is_probe_fraction(column: str) -> bool:
    """Whether a column holds accuracies of frozen features, or their standard deviations."""
    return _FRACTION.fullmatch(column) is not None


def probe_fractions(columns: Iterable[object]) -> list[str]:
    """Those of the columns that are accuracies of frozen features."""
    return [name for name in map(str, columns) if is_probe_fraction(name) and not name.endswith("_std")]


def read_probes(run_dir: Path, result: Mapping[str, Any]) -> dict[str, str | None]:
    """Column -> value as text. A file of probes that can't be read is warned of, and left out."""
    found: dict[str, Any] = {
        name: value for name, value in result.items() if name == _SPLIT or is_probe_fraction(str(name))
    }
    path = run_dir / _FILE
    if path.exists():
        try:
            file = json.loads(path.read_bytes())
            if file["schema"] != _SCHEMA:
                raise ValueError(f"schema {file['schema']!r} is not {_SCHEMA}")
            for name, probe in file["probes"].items():
                found |= _columns(f"{name}/" if name else "", probe)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(f"{path} can't be used: {error!r}", stacklevel=2)
    return {name: None if value is None else str(value) for name, value in found.items()}


def _columns(prefix: str, probe: Mapping[str, Any]) -> dict[str, Any]:
    columns = {f"{prefix}{_SPLIT}": probe["split"]}
    for score in probe["scores"]:
        columns[f"{prefix}{score['column']}"] = float(score["top1"])
        if score["top1_std"] is not None:
            columns[f"{prefix}{score['column']}_std"] = float(score["top1_std"])
    return columns

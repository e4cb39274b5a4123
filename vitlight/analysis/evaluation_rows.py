"""The evaluation sets of a run, as columns of the run table: `top1_real`, `top1_v2`, ..."""

import json
import warnings
from pathlib import Path
from typing import Any

from vitlight.analysis.columns import TABLE_COLUMNS

__all__ = ["evaluation_columns", "is_set_column"]

_PREFIX = "top1_"


def evaluation_columns(run_dir: Path, image_size: Any) -> dict[str, str]:
    """Column -> top1 as text, of the sets in evaluations.json that were evaluated at the run's `image_size`; of several
    evaluations of a set the one after the most steps. {} where there is no such file; where it can't be read, too, with a
    warning."""
    path = run_dir / "evaluations.json"
    if not path.exists():
        return {}
    try:
        scores = [score for score in json.loads(path.read_bytes()) if score["image_size"] == image_size]
        latest = {score["set"]: score for score in sorted(scores, key=lambda score: score["step"])}
        return {f"{_PREFIX}{name}": repr(float(score["top1"])) for name, score in latest.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{path} can't be used: {error!r}", stacklevel=2)
        return {}


def is_set_column(name: str) -> bool:
    """Whether a column is one of these."""
    return name.startswith(_PREFIX) and name not in TABLE_COLUMNS

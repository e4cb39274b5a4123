"""Reads runs and published results: one table, means over seeds, scaling laws, and the report page.

The public names are imported when they are first used: a law needs no figures, and a table no laws.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitlight.analysis.report import write_report
    from vitlight.analysis.runs import load_runs
    from vitlight.analysis.summary import pareto_front, summarise

__all__ = ["load_runs", "pareto_front", "summarise", "write_report"]

_HOMES = {
    "load_runs": "vitlight.analysis.runs",
    "pareto_front": "vitlight.analysis.summary",
    "summarise": "vitlight.analysis.summary",
    "write_report": "vitlight.analysis.report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitlight.analysis' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

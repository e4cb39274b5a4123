"""Reads run directories: one table of runs, means over seeds, and the report page."""

from vitlight.analysis.report import write_report
from vitlight.analysis.runs import load_runs
from vitlight.analysis.summary import pareto_front, summarise

__all__ = ["load_runs", "pareto_front", "summarise", "write_report"]

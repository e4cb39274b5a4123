"""Writes a report: the page, its tables as CSV, its charts as PNG."""

from collections.abc import Iterable
from pathlib import Path

from vitlight.analysis.figures import write_figures
from vitlight.analysis.report_page import build_page
from vitlight.analysis.runs import load_runs
from vitlight.analysis.summary import summarise

__all__ = ["write_report"]


def write_report(paths: str | Path | Iterable[str | Path], out_dir: str | Path) -> Path:
    """Report on the runs at or beneath `paths`; returns the path of `report.html`.

    `out_dir` gets report.html (one file that loads nothing else), runs.csv (a row a run), summary.csv (a row a cell)
    and accuracy_vs_{forward_flops,params,train_flops,images}.png, each replaced whole. Raises InputError for a path
    with no run.
    """
    runs = load_runs(paths)
    summary = summarise(runs)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "runs.csv", runs.to_csv(index=False, lineterminator="\n"))
    _replace(folder / "summary.csv", summary.to_csv(index=False, lineterminator="\n"))
    write_figures(summary, folder)
    return _replace(folder / "report.html", build_page(runs, summary))


def _replace(path: Path, text: str) -> Path:
    """Write beside and rename, so that a reader sees the old file or the new one, never half of it."""
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8", newline="")
    return beside.rename(path)

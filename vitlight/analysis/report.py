"""Writes a report: the page, its tables as CSV, its plots as PNG."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from vitlight.analysis.figures import write_figures
from vitlight.analysis.line_figures import write_line_figures
from vitlight.analysis.report_data import Report, gather_report
from vitlight.analysis.report_page import build_page
from vitlight.analysis.whole_files import replace_whole

__all__ = ["write_files", "write_report"]


def write_report(
    paths: str | Path | Iterable[str | Path],
    out_dir: str | Path,
    *,
    published: Sequence[str] = (),
    num_bootstrap: int = 200,
    fit_published: bool = False,
) -> Path:
    """Report on run directories, CSV files and W&B exports; returns the path of `report.html`.

    `out_dir` gets report.html (one file that loads nothing else), runs.csv (a row a run), summary.csv (a row a cell),
    published.csv where results of others are shown, and PNGs: accuracy_vs_*.png for each axis that is known,
    sample_efficiency.png and laws.png where there are such. Each file is replaced whole. The keywords are those of
    `gather_report`. Raises InputError for a path with no run.
    """
    sources = [paths] if isinstance(paths, str | Path) else list(paths)
    report = gather_report(
        sources, Path(out_dir), published=published, num_bootstrap=num_bootstrap, fit_published=fit_published
    )
    return write_files(report)[0]


def write_files(report: Report) -> tuple[Path, list[Path]]:
    """All files of a report into its folder; returns the page and the PNGs."""
    report.folder.mkdir(parents=True, exist_ok=True)
    tables = {"runs.csv": report.runs, "summary.csv": report.summary}
    if len(report.published):
        tables["published.csv"] = report.published
    for name, table in tables.items():
        _replace(report.folder / name, table.to_csv(index=False, lineterminator="\n"))
    pngs = write_figures(report.figure_points, report.folder)
    pngs += write_line_figures([curve for group, curve in report.curves if group is None], report.panels, report.folder)
    beside = [*tables, *(path.name for path in pngs)]
    return _replace(report.folder / "report.html", build_page(report, beside)), pngs


def _replace(path: Path, text: str) -> Path:
    return replace_whole(path, lambda beside: beside.write_text(text, encoding="utf-8", newline=""))

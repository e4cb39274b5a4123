"""The report page: one HTML file that holds its own data, style and script, and may load nothing else."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from typing import Any

import pandas as pd

from vitlight.analysis.chart_points import drawn_charts
from vitlight.analysis.charts import FamilyStyle
from vitlight.analysis.findings import state_caveats
from vitlight.analysis.plot_tables import published_table
from vitlight.analysis.quantities import (
    FLOP_CONVENTION,
    format_commit,
    format_count,
    format_duration,
    format_percent,
    format_points,
    format_si,
    format_top1,
)
from vitlight.analysis.report_data import Report
from vitlight.analysis.report_rates import rate_section
from vitlight.analysis.report_sections import (
    chart_section,
    curve_section,
    finding_section,
    law_section,
    limit_section,
)
from vitlight.analysis.report_tables import grid_tables, not_counted_table, run_table
from vitlight.analysis.summary import counted_runs

__all__ = ["build_page"]

_SCRIPTS = ("axes.js", "draw.js", "scatter.js", "lines.js", "report.js")
_STYLES = ("report.css", "print.css")
_STATUS_WORDS = {"running": "still running", "diverged": "diverged", "stopped": "ended early", "failed": "failed"}


def build_page(report: Report, beside: Sequence[str] = ()) -> str:
    """The page: the same bytes for the same report. `beside` names the files that lie in its folder."""
    assets = files("vitlight.analysis") / "assets"
    script = "".join((assets / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script_digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{script_digest}'"
    styles = report.styles
    counted = counted_runs(report.runs)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{escape(report.title)}: vitlight scaling report</title>
<style>
{"".join((assets / name).read_text(encoding="utf-8") for name in _STYLES)}{_family_colours(styles)}</style>
</head>
<body>
<main>
{_header(report, counted)}
{_caveats(report.runs, report.summary)}
{chart_section(report.points, report.sizes, styles)}
{finding_section(report.summary)}
{limit_section(report.limits)}
{_grid(report.summary)}
{rate_section(report.rates)}
{curve_section(report.curves, styles)}
{law_section(report.fits, report.excluded, report.num_bootstrap > 0)}
{_tables(report, counted)}
</main>
{_footer(report.runs, counted, beside)}
<div id="tip" role="status" hidden></div>
<script type="application/json" id="report-data">{_script_json(_payload(report, styles))}</script>
<script>{script}</script>
</body>
</html>
"""


def _payload(report: Report, styles: dict[str, FamilyStyle]) -> dict[str, Any]:
    """What the script draws."""
    return {
        "charts": [
            {
                "key": chart.key,
                "title": chart.title,
                "axis": chart.axis,
                "connects": chart.connects,
                "is_gain": chart.is_gain,
            }
            for chart in drawn_charts(report.points)
        ],
        "families": [{"name": name, "marker": style.marker} for name, style in styles.items()],
        "sizes": report.sizes,
        "points": report.points,
        "curves": [{"group": group} | asdict(curve) for group, curve in report.curves],
        "laws": report.panels,
    }


def _script_json(value: Any) -> str:
    """JSON that can stand inside a script element: no `<`, `>` or `&` of a run's text ends or opens anything."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _family_colours(styles: dict[str, FamilyStyle]) -> str:
    light = " ".join(f"--family-{i}: {style.light};" for i, style in enumerate(styles.values()))
    dark = " ".join(f"--family-{i}: {style.dark};" for i, style in enumerate(styles.values()))
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def _header(report: Report, counted: pd.DataFrame) -> str:
    runs, summary = report.runs, report.summary
    others = [f"{int((runs['status'] == status).sum())} {words}" for status, words in _STATUS_WORDS.items()]
    others = [text for text in others if not text.startswith("0 ")]
    facts = [("runs done", f"{len(counted):,}", ", ".join(others) or "none failed or diverged")] if len(runs) else []
    if len(summary):
        best = summary.iloc[int(summary["top1_mean"].to_numpy(dtype=float).argmax())]
        n = int(best["n"])
        top1 = format_top1(float(best["top1_mean"]), float(best["top1_std"]) if n > 1 else None)
        facts.append(("highest mean top-1", f"{top1} %", f"{best['arch']}, n = {n}"))
        facts += _compute_fact(counted)
        facts += _time_fact(counted)
        facts += _noise_fact(summary)
    facts += _published_facts(report.published_points)
    lede = (
        f"Top-1 accuracy of {format_count(summary['arch'].nunique(), 'model')} in "
        f"{format_count(summary['family'].nunique(), 'family')}, trained on "
        f"{format_count(summary['num_train_samples'].nunique(), 'dataset size')} with {_seeds(summary)}."
        if len(summary)
        else "No run has finished yet, so there is nothing to plot."
        if len(runs)
        else "Results that others published; none of them was trained here."
    )
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}<small>{escape(small)}</small></dd></div>"
        for name, value, small in facts
    )
    return f"""<header>
<p class="kicker">vitlight scaling report</p>
<h1>{escape(report.title)}</h1>
<p class="lede">{lede}</p>
<p class="origin">{escape(_origin(counted))}</p>
<dl class="facts">{cells}</dl>
</header>"""


def _origin(counted: pd.DataFrame) -> str:
    """When, from which commit, with which versions: the short form; the footer has all of it."""
    days = sorted({str(when)[:10] for when in counted["finished_at"].dropna()})
    parts = [f"{days[0]} to {days[-1]}" if len(days) > 1 else days[0]] if days else []
    commits = [format_commit(str(commit)) for commit in counted["commit"].dropna().unique()]
    parts += [f"commit {commits[0]}" if len(commits) == 1 else f"{len(commits)} commits"] if commits else []
    versions = [json.loads(str(text)) for text in counted["versions"].dropna().unique()]
    for name in ("vitlight", "torch", "lightning", "python"):
        known = sorted({str(version[name]) for version in versions if name in version})
        parts += [f"{name} {' and '.join(known)}"] if known else []
    return " · ".join(parts)


def _compute_fact(counted: pd.DataFrame) -> list[tuple[str, str, str]]:
    """What the runs cost together, steps that several share counted once; none where no run tells."""
    whole = counted["train_flops"].dropna()
    own = counted["own_train_flops"].where(counted["own_train_flops"].notna(), counted["train_flops"]).dropna()
    if own.empty:
        return []
    shared = sum(whole) - sum(own)
    note = f"{FLOP_CONVENTION}, {_of_all(own, counted)}"
    note += f"; {format_si(shared, 'FLOP')} that runs share is counted once" if shared > 0 else ""
    return [("training compute", format_si(sum(own), "FLOP"), note)]


def _of_all(known: pd.Series, counted: pd.DataFrame) -> str:
    return "all runs done" if len(known) == len(counted) else f"the {len(known)} of {len(counted)} runs that tell"


def _time_fact(counted: pd.DataFrame) -> list[tuple[str, str, str]]:
    column = "own_device_seconds" if counted["own_device_seconds"].notna().all() else "wall_seconds"
    known = counted[column].dropna()
    if known.empty:
        return []
    devices = ", ".join(sorted(str(device) for device in counted["device"].dropna().unique()))
    note = devices if len(known) == len(counted) else _of_all(known, counted)
    name = "device time" if column == "own_device_seconds" else "wall time"
    return [(name, format_duration(known.sum()), note)]


def _noise_fact(summary: pd.DataFrame) -> list[tuple[str, str, str]]:
    known = summary[summary["top1_eval_standard_error"].notna()]
    if known.empty:
        return []
    worst = known.iloc[int(known["top1_eval_standard_error"].to_numpy(dtype=float).argmax())]
    noise = format_points(float(worst["top1_eval_standard_error"]), 2)
    return [
        ("evaluation noise", f"± {noise}", f"one standard error at most, {int(worst['num_eval_samples']):,} images")
    ]


def _published_facts(points: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    if not points:
        return []
    kinds = format_count(len({point["group"] for point in points}), "kind")
    return [("published results", f"{len(points):,}", f"{kinds} of pretraining data; in no mean and no statement")]


def _seeds(summary: pd.DataFrame) -> str:
    low, high = int(summary["n"].min()), int(summary["n"].max())
    return format_count(low, "seed") + " each" if low == high else f"{low} to {high} seeds each"


def _caveats(runs: pd.DataFrame, summary: pd.DataFrame) -> str:
    items = "".join(f"<li>{escape(caveat)}</li>" for caveat in state_caveats(runs, summary))
    return f'<ul class="caveats" aria-label="Before you compare">{items}</ul>' if items else ""


def _grid(summary: pd.DataFrame) -> str:
    tables = grid_tables(summary) if len(summary) else ""
    if not tables:
        return ""
    low, high = format_percent(summary["top1_mean"].min()), format_percent(summary["top1_mean"].max())
    return f"""<section id="grid">
<h2>Model size × dataset size</h2>
<p class="note">Top-1 in percent, mean ± sample standard deviation over n seeds; shading runs from {low} to {high}.</p>
{tables}
</section>"""


def _tables(report: Report, counted: pd.DataFrame) -> str:
    left_out = report.runs[(report.runs["status"] != "done").fillna(True)]
    parts = []
    if len(left_out):
        parts.append(f"""<section id="not-counted">
<h2>Not counted</h2>
<p class="note">These runs are in no mean, no chart and no statement above.</p>
{not_counted_table(left_out, report.folder)}
</section>""")
    if len(counted):
        parts.append(f"""<section id="runs">
<h2>Runs</h2>
<p class="note">{format_count(len(counted), "run")} counted. A header sorts; pointing at a number shows it exactly;
runs.csv has all columns.</p>
{run_table(counted, report.folder)}
</section>""")
    if report.published_points:
        parts.append(f"""<section id="published-results">
<h2>Published results</h2>
<p class="note">As their sources state them, FLOPs brought to one convention ({FLOP_CONVENTION}). The choice above
the charts chooses here, too.</p>
<details{"" if len(counted) else " open"}>
<summary>{format_count(len(report.published_points), "result")} with sources</summary>
{published_table(report.published_points)}</details>
</section>""")
    return "\n".join(parts)


def _footer(runs: pd.DataFrame, counted: pd.DataFrame, beside: Sequence[str]) -> str:
    finished = sorted(str(when) for when in counted["finished_at"].dropna())
    lines = []
    if finished:
        lines.append(
            f"Runs finished {finished[0]} to {finished[-1]}."
            if finished[0] != finished[-1]
            else f"Run finished {finished[0]}."
        )
    for column, name in (("commit", "Commit"), ("data_digest", "Data digest")):
        values = [str(value) for value in runs[column].dropna().unique()]
        if values:
            lines.append(f"{name}: " + ", ".join(values) + ".")
    lines += [
        "Versions: " + ", ".join(f"{name} {version}" for name, version in json.loads(str(text)).items()) + "."
        for text in runs["versions"].dropna().unique()
    ]
    paragraphs = "".join(f"<p>{escape(line)}</p>" for line in lines)
    named = ", ".join(f'<a href="{name}">{name}</a>' for name in beside)
    return f"""<footer>
{paragraphs}
<p>Beside this page: {named}.</p>
</footer>"""

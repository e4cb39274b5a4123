"""The report page: one HTML file that holds its own data, style and script, and may load nothing else."""

import base64
import hashlib
import json
from html import escape
from importlib.resources import files
from typing import Any

import pandas as pd

from vitlight.analysis.charts import CHARTS, chart_points, family_styles
from vitlight.analysis.findings import state_caveats, state_findings
from vitlight.analysis.quantities import (
    FLOP_CONVENTION,
    TRAIN_FLOP_CONVENTION,
    format_commit,
    format_count,
    format_duration,
    format_percent,
    format_points,
    format_si,
    format_top1,
)
from vitlight.analysis.report_tables import grid_tables, not_counted_table, run_table
from vitlight.analysis.summary import counted_runs

__all__ = ["build_page"]

_STATUS_WORDS = {"running": "still running", "diverged": "diverged", "failed": "failed"}


def build_page(runs: pd.DataFrame, summary: pd.DataFrame) -> str:
    """The page for a `load_runs` table and its `summarise`: the same bytes for the same runs."""
    assets = files("vitlight.analysis") / "assets"
    script = "".join((assets / name).read_text(encoding="utf-8") for name in ("axes.js", "report.js"))
    script_digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{script_digest}'"
    styles = family_styles([str(family) for family in summary["family"].unique()])
    counted = counted_runs(runs)
    title = " + ".join(str(name) for name in runs["name"].dropna().unique()) or "runs"
    payload = {
        "charts": [{"key": chart.key, "axis": chart.axis, "connects": chart.connects} for chart in CHARTS],
        "families": [{"name": name, "marker": style.marker} for name, style in styles.items()],
        "points": chart_points(summary),
    }
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{escape(title)}: vitlight scaling report</title>
<style>
{(assets / "report.css").read_text(encoding="utf-8")}{_family_colours(styles)}</style>
</head>
<body>
{_header(title, runs, counted, summary)}
{_caveats(runs, summary)}
{_charts(summary, styles)}
{_findings(summary)}
{_tables(runs, counted, summary)}
{_footer(runs, counted)}
<div id="tip" role="status" hidden></div>
<script type="application/json" id="report-data">{_script_json(payload)}</script>
<script>{script}</script>
</body>
</html>
"""


def _script_json(value: Any) -> str:
    """JSON that can stand inside a script element: no `<`, `>` or `&` of a run's text ends or opens anything."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _family_colours(styles: dict[str, Any]) -> str:
    light = " ".join(f"--family-{i}: {style.light};" for i, style in enumerate(styles.values()))
    dark = " ".join(f"--family-{i}: {style.dark};" for i, style in enumerate(styles.values()))
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def _header(title: str, runs: pd.DataFrame, counted: pd.DataFrame, summary: pd.DataFrame) -> str:
    others = [f"{int((runs['status'] == status).sum())} {words}" for status, words in _STATUS_WORDS.items()]
    others = [text for text in others if not text.startswith("0 ")]
    facts = [("runs done", f"{len(counted):,}", ", ".join(others) or "none failed or diverged")]
    if len(summary):
        best = summary.iloc[int(summary["top1_mean"].to_numpy(dtype=float).argmax())]
        n = int(best["n"])
        top1 = format_top1(float(best["top1_mean"]), float(best["top1_std"]) if n > 1 else None)
        facts.append(("highest mean top-1", f"{top1} %", f"{best['arch']}, n = {n}"))
        facts.append(("training compute", format_si(sum(counted["own_train_flops"]), "FLOP"), _compute_note(counted)))
        facts.append(_time_fact(counted))
        facts += _noise_fact(summary)
    lede = (
        f"Top-1 accuracy of {format_count(summary['arch'].nunique(), 'model')} in "
        f"{format_count(summary['family'].nunique(), 'family')}, trained on "
        f"{format_count(summary['num_train_samples'].nunique(), 'dataset size')} with {_seeds(summary)}."
        if len(summary)
        else "No run has finished yet, so there is nothing to plot."
    )
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}<small>{escape(small)}</small></dd></div>"
        for name, value, small in facts
    )
    return f"""<header>
<p class="kicker">vitlight scaling report</p>
<h1>{escape(title)}</h1>
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


def _compute_note(counted: pd.DataFrame) -> str:
    shared = sum(counted["train_flops"]) - sum(counted["own_train_flops"])
    note = f"{FLOP_CONVENTION}, all runs done"
    return f"{note}; {format_si(shared, 'FLOP')} that runs share is counted once" if shared else note


def _time_fact(counted: pd.DataFrame) -> tuple[str, str, str]:
    column = "own_device_seconds" if counted["own_device_seconds"].notna().all() else "wall_seconds"
    devices = ", ".join(sorted(str(device) for device in counted["device"].dropna().unique()))
    return (
        "device time" if column == "own_device_seconds" else "wall time",
        format_duration(counted[column].sum()),
        devices,
    )


def _noise_fact(summary: pd.DataFrame) -> list[tuple[str, str, str]]:
    known = summary[summary["top1_eval_standard_error"].notna()]
    if known.empty:
        return []
    worst = known.iloc[int(known["top1_eval_standard_error"].to_numpy(dtype=float).argmax())]
    noise = format_points(float(worst["top1_eval_standard_error"]), 2)
    return [
        ("evaluation noise", f"± {noise}", f"one standard error at most, {int(worst['num_eval_samples']):,} images")
    ]


def _seeds(summary: pd.DataFrame) -> str:
    low, high = int(summary["n"].min()), int(summary["n"].max())
    return format_count(low, "seed") + " each" if low == high else f"{low} to {high} seeds each"


def _caveats(runs: pd.DataFrame, summary: pd.DataFrame) -> str:
    items = "".join(f"<li>{escape(caveat)}</li>" for caveat in state_caveats(runs, summary))
    return f'<ul class="caveats" aria-label="Before you compare">{items}</ul>' if items else ""


def _findings(summary: pd.DataFrame) -> str:
    items = "".join(
        f'<li><h3><span>{escape(found.title)}</span><span class="verdict {found.verdict.replace(" ", "-")}">'
        f"{escape(found.label)}</span></h3><p>{escape(found.text)}</p></li>"
        for found in state_findings(summary)
    )
    if not items:
        return ""
    return f"""<section>
<h2>What these numbers support</h2>
<p class="note">Computed from the cells below. Each family stands with its best model, whatever that costs. A gap is
supported when it is larger than what seeds explain (95 % t interval, their variance pooled over the models of a data
size) and than the noise of a finite evaluation set (95 %). Each statement stands alone, uncorrected for their number
and for picking the best.</p>
<ul class="findings">{items}</ul>
</section>"""


def _charts(summary: pd.DataFrame, styles: dict[str, Any]) -> str:
    if summary.empty:
        return ""
    families = "".join(
        f'<button type="button" aria-pressed="true" data-filter-family="{escape(name)}" '
        f'style="--colour: var(--family-{i})">'
        f'<svg width="16" height="16" aria-hidden="true" data-family="{escape(name)}"></svg>{escape(name)}</button>'
        for i, name in enumerate(styles)
    )
    sizes = "".join(
        f'<button type="button" aria-pressed="true" data-filter-size="{size}">'
        f'<svg width="18" height="18" aria-hidden="true" data-size="{size}"></svg>{size:,}</button>'
        for size in sorted(int(size) for size in summary["num_train_samples"].unique())
    )
    figures = "".join(
        f'<figure data-chart="{chart.key}"{" class=wide" if chart is CHARTS[0] else ""}>'
        f'<figcaption><h3><span class="measure">Accuracy</span> against {chart.title}</h3></figcaption>'
        '<div class="plot"></div></figure>'
        for chart in CHARTS
    )
    return f"""<section>
<h2>Accuracy against size, data and compute</h2>
<p class="note">Points are means over seeds, larger for more training images; bars are ± one sample standard deviation,
faint dots the single seeds. A hollow point has one seed: its spread is unknown. The dotted steps are the Pareto front
of the means shown: no point is both cheaper and better than one on it.</p>
<div class="filters">
<div role="group" aria-label="Families"><span>family</span>{families}</div>
<div role="group" aria-label="Training images"><span>images</span>{sizes}</div>
<div role="group" aria-label="Measure">
<button type="button" data-measure="accuracy" aria-pressed="true">accuracy</button>
<button type="button" data-measure="error" aria-pressed="false">error (log)</button></div>
</div>
<noscript><p class="note">The charts need JavaScript; the PNG files beside this page show the same.</p></noscript>
<div class="charts">{figures}</div>
<p class="note">{FLOP_CONVENTION}; {TRAIN_FLOP_CONVENTION}. Hover, tap, or use the arrow keys for the numbers of a
point.</p>
</section>"""


def _tables(runs: pd.DataFrame, counted: pd.DataFrame, summary: pd.DataFrame) -> str:
    left_out = runs[runs["status"] != "done"]
    parts = []
    if len(summary):
        low, high = format_percent(summary["top1_mean"].min()), format_percent(summary["top1_mean"].max())
        parts.append(f"""<section>
<h2>Model size × dataset size</h2>
<p class="note">Top-1 in percent, mean ± sample standard deviation over n seeds; shading runs from {low} to {high}.</p>
{grid_tables(summary)}
</section>""")
    if len(left_out):
        parts.append(f"""<section>
<h2>Not counted</h2>
<p class="note">These runs are in no mean, no chart and no statement above.</p>
{not_counted_table(left_out)}
</section>""")
    if len(counted):
        parts.append(f"""<section>
<h2>Runs</h2>
<p class="note">{format_count(len(counted), "run")} counted. A header sorts; pointing at a number shows it exactly;
runs.csv has all columns.</p>
{run_table(counted)}
</section>""")
    return "\n".join(parts)


def _footer(runs: pd.DataFrame, counted: pd.DataFrame) -> str:
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
    pngs = ", ".join(f'<a href="{chart.file}">{chart.file}</a>' for chart in CHARTS)
    return f"""<footer>
{paragraphs}
<p>Beside this page: <a href="runs.csv">runs.csv</a>, <a href="summary.csv">summary.csv</a>, {pngs}.</p>
</footer>"""

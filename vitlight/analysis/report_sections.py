"""The sections of the report page between its head and its tables: charts, curves, laws, and what can't be concluded."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from vitlight.analysis.chart_points import drawn_charts
from vitlight.analysis.charts import FamilyStyle
from vitlight.analysis.curves import Curve
from vitlight.analysis.findings import state_findings
from vitlight.analysis.law_text import formula_with_numbers
from vitlight.analysis.plot_tables import curve_table, parameter_table
from vitlight.analysis.points import Exclusion
from vitlight.analysis.quantities import FLOP_CONVENTION, TRAIN_FLOP_CONVENTION, format_count, format_percent
from vitlight.analysis.report_fits import FamilyFit

__all__ = ["chart_section", "curve_section", "finding_section", "law_section", "limit_section"]

_MOST_CHIPS = 10  # more families than that are folded away
_MOST_SIZES = 12
_MOST_LISTED = 12  # lines of one kind; the rest is counted


def chart_section(points: list[dict[str, Any]], sizes: Sequence[int], styles: dict[str, FamilyStyle]) -> str:
    """The charts with their switches. `points` are own and published ones, `sizes` the data sizes to filter by."""
    charts = drawn_charts(points)
    if not charts:
        return ""
    options = "".join(f'<option value="{chart.key}">{chart.title}</option>' for chart in charts)
    plot = '<div class="plot"></div><p class="missing note" hidden></p></figure>'
    axis = f'<label class="switch">x axis <select id="axis">{options}</select></label>'
    wide = (
        f'<figure data-chart="{charts[0].key}" class="wide"><figcaption><h3><span class="measure">Accuracy</span> against '
        f'<span class="against">{charts[0].title}</span></h3>{axis}</figcaption>{plot}'
    )
    small = "".join(
        f'<figure data-chart="{chart.key}"><figcaption><h3><span class="measure">Accuracy</span> against {chart.title}</h3>'
        f"</figcaption>{plot}"
        for chart in charts[1:4]
    )
    return f"""<section id="charts">
<h2>Accuracy against size, data and compute</h2>
<p class="note">{_chart_note(points)}</p>
<div class="filters">
{_family_chips(points, styles)}{_size_chips(sizes)}
<div role="group" aria-label="Measure">{_switch("measure", {"accuracy": "accuracy", "error": "error (log)"})}</div>
<div role="group" aria-label="Scale of x">{_switch("scale", {"log": "log x", "linear": "linear x"})}</div>
<div role="group" aria-label="Pareto front">{_switch("front", {"all": "one front", "families": "front by family"})}</div>
{_published_choice(points)}
</div>
<noscript><p class="note">The charts need JavaScript; the PNG files beside this page show the same.</p></noscript>
<div class="charts count-{len(charts[1:4])}">{wide}{small}</div>
<p class="note">{FLOP_CONVENTION}; {TRAIN_FLOP_CONVENTION}. Point at a mark, or use the arrow keys, for its numbers;
click, tap or press Enter for links to its runs. The tables below hold the same numbers.</p>
</section>"""


def _chart_note(points: list[dict[str, Any]]) -> str:
    has_own, has_published = (any(("group" in point) == kind for point in points) for kind in (False, True))
    own = (
        "Points are means over seeds, larger for more training images; bars are ± one sample standard deviation, faint dots "
        "the single seeds. A hollow point has one seed: its spread is unknown. "
    )
    published = (
        "Small marks are results that others published, one number each with no spread known; they are in no mean and no "
        "statement on this page. Compare them only within one kind of pretraining data. "
    )
    front = (
        "The dotted steps are the Pareto front of the points shown: no point is both cheaper and better than one on it."
    )
    both = " Own and published points have a front each." if has_own and has_published else ""
    return (own if has_own else "") + (published if has_published else "") + front + both


def _family_chips(points: list[dict[str, Any]], styles: dict[str, FamilyStyle]) -> str:
    present = {point["family"] for point in points}
    chips = {
        name: f'<button type="button" aria-pressed="true" data-filter-family="{escape(name)}" '
        f'style="--colour: var(--family-{i})"><svg width="16" height="16" aria-hidden="true" data-family="{escape(name)}">'
        f"</svg>{escape(name)}</button>"
        for i, name in enumerate(styles)
        if name in present
    }
    shown = (
        list(chips)
        if len(chips) <= _MOST_CHIPS
        else list(dict.fromkeys(p["family"] for p in points if "group" not in p))
    )
    folded = [name for name in chips if name not in shown]
    text = "".join(chips[name] for name in chips if name in shown)
    if folded:
        summary = f"{len(folded)} more" if shown else format_count(len(folded), "family")
        text += f"<details><summary>{summary}</summary>{''.join(chips[name] for name in folded)}</details>"
    return f'<div role="group" aria-label="Families"><span>family</span>{text}</div>\n'


def _size_chips(sizes: Sequence[int]) -> str:
    if len(sizes) < 2 or len(sizes) > _MOST_SIZES:
        return ""
    chips = "".join(
        f'<button type="button" aria-pressed="true" data-filter-size="{size}">'
        f'<svg width="18" height="18" aria-hidden="true" data-size="{size}"></svg>{size:,}</button>'
        for size in sizes
    )
    return f'<div role="group" aria-label="Training images"><span>images</span>{chips}</div>'


def _switch(name: str, choices: dict[str, str]) -> str:
    return "".join(
        f'<button type="button" class="choice" data-{name}="{value}" aria-pressed="{pressed}">{text}</button>'
        for pressed, (value, text) in zip(("true", "false"), choices.items(), strict=True)
    )


def _published_choice(points: list[dict[str, Any]]) -> str:
    """The published results to show: one kind of pretraining data, at first the one with the most of them."""
    counts = Counter(point["group"] for point in points if "group" in point)
    if not counts:
        return ""
    options = "".join(
        f'<option value="{escape(group)}">{escape(group)} ({count})</option>' for group, count in counts.most_common()
    )
    has_own = any("group" not in point for point in points)
    off = '<option value="off">none</option>' if has_own else ""
    every = '<option value="all">all, not comparable</option>' if len(counts) > 1 else ""
    return f'<label class="switch">published results <select id="published">{options}{every}{off}</select></label>'


def curve_section(curves: Sequence[tuple[str | None, Curve]], styles: dict[str, FamilyStyle]) -> str:
    """A panel a family; `curves` come with the group of published ones, None for own ones."""
    families = [family for family in styles if any(curve.family == family for _, curve in curves)]
    if not families:
        return ""
    measures = "; ".join(dict.fromkeys(curve.measure for _, curve in curves))
    panels = "".join(
        f'<figure data-curves="{escape(family)}"><figcaption><h3>{escape(family)}</h3></figcaption>'
        '<div class="plot"></div></figure>'
        for family in families
    )
    return f"""<section id="curves">
<h2>Sample efficiency</h2>
<p class="note">Accuracy against samples seen ({escape(measures)}), a line a model and number of training images,
mean over runs. Stronger lines are larger models; solid lines have the most training images, dashed ones fewer.</p>
<div class="charts panels count-{min(len(families), 3)}">{panels}</div>
<details class="numbers"><summary>The curves as a table</summary>{curve_table(curves)}</details>
</section>"""


def law_section(fits: Sequence[FamilyFit], excluded: Sequence[Exclusion], was_asked: bool) -> str:
    """The laws with what is to be known before believing one, and the runs that took no part."""
    if not was_asked or not fits:
        return ""
    blocks = []
    for place, one in enumerate(one for one in fits if one.fit is not None):
        assert one.fit is not None
        blocks.append(
            f'<article class="law"><figure data-law="{place}"><figcaption><h3>Error of {escape(_short(one))}</h3>'
            f'</figcaption><div class="plot"></div></figure><div><p class="formula"><code>'
            f"{escape(formula_with_numbers(one.fit.form.formula, one.fit.parameters))}</code></p>"
            f"{parameter_table(one.fit)}<p>{escape(_held_out(one))}</p>{_lines(one.fit.warnings, 'warnings')}"
            f"{_lines(one.points.notes, 'note')}</div></article>"
        )
    refused = [f"{_short(one)}: no law. {one.reason}" for one in fits if one.fit is None]
    left_out = [f"{one.run}: {one.reason}" for one in excluded]
    head = f"<details><summary>{format_count(len(left_out), 'run')} in no law</summary>" if left_out else ""
    return f"""<section id="laws">
<h2>Laws</h2>
<p class="note">Error fitted in logarithms, with a robust loss; the band holds the law itself with 90 % probability
(bootstrap over cells and seeds). Hollow marks are the largest runs, held out once: the dash is what the law predicts of
them when it is fitted without them. {FLOP_CONVENTION}. <code>vitlight law</code> compares forms and gives frontiers and
the next run.</p>
{"".join(blocks)}{_lines(refused, "note")}
{head}{_lines(left_out, "note")}{"</details>" if left_out else ""}
</section>"""


def _short(one: FamilyFit) -> str:
    """Where sets differ in their family only, its name alone."""
    return one.name.removeprefix("family=")


def _held_out(one: FamilyFit) -> str:
    held = one.held_out
    if held is None:
        return "Held out: none, too few runs are left without the largest. Nothing is known of how this law predicts."
    return (
        f"Held out: {format_count(len(held.labels), 'run')} of most {held.axis}. Fitted without, the law is "
        f"{format_percent(held.mean_abs_log_error)} off in error on average; {int(held.inside.sum())} of {len(held.labels)} "
        f"lie in the {100 * held.fit.level:g} % band of a new run."
    )


def _lines(texts: Sequence[str], kind: str) -> str:
    if not texts:
        return ""
    shown = [f"<li>{escape(text)}</li>" for text in texts[:_MOST_LISTED]]
    if len(texts) > _MOST_LISTED:
        shown.append(f"<li>and {len(texts) - _MOST_LISTED} more</li>")
    return f'<ul class="{kind}">{"".join(shown)}</ul>'


def finding_section(summary: pd.DataFrame) -> str:
    items = "".join(
        f'<li><h3><span>{escape(found.title)}</span><span class="verdict {found.verdict.replace(" ", "-")}">'
        f"{escape(found.label)}</span></h3><p>{escape(found.text)}</p></li>"
        for found in state_findings(summary)
    )
    if not items:
        return ""
    return f"""<section id="findings">
<h2>What these numbers support</h2>
<p class="note">Computed from the cells below. Each family stands with its best model, whatever that costs. A gap is
supported when it is larger than what seeds explain (95 % t interval, their variance pooled over the models of a data
size) and than the noise of a finite evaluation set (95 %). Each statement stands alone, uncorrected for their number
and for picking the best.</p>
<ul class="findings">{items}</ul>
</section>"""


def limit_section(limits: Sequence[str]) -> str:
    if not limits:
        return ""
    return f"""<section id="limits">
<h2>What can’t be concluded</h2>
<ul class="limits">{"".join(f"<li>{escape(text)}</li>" for text in limits)}</ul>
</section>"""

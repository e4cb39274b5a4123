"""Learning rates in the report: a row a size, and what can be said of one rate for all of them."""

from collections.abc import Sequence
from html import escape

from vitlight.analysis.learning_rates import SizeRates, Verdict
from vitlight.analysis.quantities import format_count, format_points, format_si
from vitlight.analysis.rate_sets import RateSet
from vitlight.analysis.report_tables import NONE, scroll

__all__ = ["rate_section", "state_rates"]

_MOST_RATES = 10
_MOST_NAMED = 4
_TEXT = ' class="text"'
_NAMING = ("num_train_samples", "horizon_samples", "global_batch_size", "weight_decay", "image_size", "eval_split")


def rate_section(sets: Sequence[RateSet]) -> str:
    """Nothing where no size was trained with two rates or more."""
    if not sets:
        return ""
    blocks = []
    for one in sets:
        heading = f"<h3>{escape(set_name(one, sets))}</h3>" if len(sets) > 1 else ""
        said = "".join(f"<li>{escape(line)}</li>" for line in state_rates(one))
        blocks.append(f'{heading}<ul class="note">{said}</ul>{_table(one)}')
    return f"""<section id="learning-rates">
<h2>Learning rates</h2>
<p class="note">Error in percent. The optimum is the lowest point of a parabola in the logarithm of the rate, through the
best rate tried and its two neighbours. Within noise are rates whose error differs from it by less than 1.645 standard
errors of a difference. A rate of which a run diverged is left out where there is another.</p>
{"".join(blocks)}
</section>"""


def set_name(one: RateSet, sets: Sequence[RateSet]) -> str:
    """What a set has that some other has not; of the settings that no column has only where columns don't tell."""
    telling = [name for name in _NAMING if len({other.settings[name] for other in sets}) > 1]
    named = [f"{name} {one.settings[name]}" for name in telling if one.settings[name] is not None]
    alike = [other for other in sets if other.settings == one.settings]
    if len(alike) > 1:
        named += _named_recipe(one, alike)
    return ", ".join(named) or f"data {one.settings['data_digest']}"


def _named_recipe(one: RateSet, alike: Sequence[RateSet]) -> list[str]:
    if not one.recipe:
        return ["settings not known"]
    recipes = [other.recipe for other in alike if other.recipe]
    names = sorted({name for recipe in recipes for name in recipe if len({other.get(name) for other in recipes}) > 1})
    named = [f"{name} {one.recipe.get(name, 'unset')}" for name in names[:_MOST_NAMED]]
    return [*named, "..."] if len(names) > _MOST_NAMED else named


def state_rates(one: RateSet) -> list[str]:
    """Whether one rate serves all sizes, of each family and of all; how the optimum moves; and what isn't known."""
    lines = []
    for name in [*one.families, None]:
        verdict = one.verdict(name)
        if verdict is not None and not (name is None and len(one.families) == 1 and _is_one_family(one)):
            lines.append(_verdict_line(verdict, name or "all sizes", one))
    lines += [line for name in one.families if (line := _trend(one, name)) is not None]
    for side in ("lowest", "highest"):
        lines += _edge_lines([size for size in one.sizes if size.lies_at == side], side)
    lines.append(_noise_line(one))
    return lines


def _is_one_family(one: RateSet) -> bool:
    return len({size.family for size in one.sizes}) == 1


def _verdict_line(verdict: Verdict, who: str, one: RateSet) -> str:
    loss = f"{verdict.worst_arch} loses {format_points(verdict.worst, 2)}, more than any other"
    if verdict.worst == 0.0:
        return f"{who}: {verdict.rate:g} is the best rate of each."
    if verdict.serves is None:
        return f"{who}: with {verdict.rate:g}, the best for all, {loss}; whether that is noise isn't known."
    if not verdict.serves:
        may = (
            f" By the parabolas, one from {verdict.between[0]:.2g} to {verdict.between[1]:.2g} may."
            if verdict.between
            else ""
        )
        return f"{who}: no rate tried serves all within noise; with {verdict.rate:g}, the nearest to it, {loss}.{may}"
    others = f"; so do {', '.join(f'{rate:g}' for rate in verdict.others)}" if verdict.others else ""
    return f"{who}: {verdict.rate:g} serves all within noise, {loss}{others}."


def _trend(one: RateSet, family: str) -> str | None:
    """From the smallest to the largest size whose optimum lies inside its row."""
    known = [size for size in one.sizes if size.family == family and size.optimum is not None and size.params]
    if len(known) < 2:
        return None
    small, large = known[0], known[-1]
    if small.params == large.params:
        return None
    assert small.optimum is not None and large.optimum is not None
    return (
        f"{family}: the optimum goes from {small.optimum:.2g} ({small.arch}) to {large.optimum:.2g} ({large.arch}), "
        f"{large.optimum / small.optimum:.2f} times as large."
    )


def _edge_lines(sizes: Sequence[SizeRates], side: str) -> list[str]:
    """Above a rate that diverged, for want of a better one, there is nothing to try."""
    open_ended = [size for size in sizes if side == "lowest" or not any(rate >= size.best for rate in size.diverged)]
    if not open_ended:
        return []
    named = ", ".join(size.arch for size in open_ended)
    where = "below" if side == "lowest" else "above"
    return [f"The {side} rate tried is the best of {named}: the row may be too short, try one {where} it."]


def _noise_line(one: RateSet) -> str:
    by = "By accuracy on val." if one.measure == "val_top1" else "By top-1, with which results are reported, too."
    if one.noise_sd is None:
        return f"{by} No cell has two seeds, so what noise is can't be told."
    spread = format_points(one.noise_sd, 2)
    if one.noise_from == "seeds":
        return f"{by} Seeds spread by {spread} (standard deviation, pooled over all cells)."
    return f"{by} No cell has two seeds: noise is taken to be that of counting so many images, {spread}."


def _table(one: RateSet) -> str:
    """A column for each rate; of many, as a search tries them, the best alone."""
    rates = sorted({rate for size in one.sizes for rate in size.tried})
    is_wide = len(rates) > _MOST_RATES
    middle = ["rates tried", "best", "error there"] if is_wide else [f"{rate:g}" for rate in rates]
    titles = ["model", "params", *middle, "optimum", "within noise"]
    heads = "".join(f'<th scope="col"{_TEXT if title == "model" else ""}>{escape(title)}</th>' for title in titles)
    rows = "".join(_row(size, _best_cells(size) if is_wide else _error_cells(size, rates)) for size in one.sizes)
    number = format_count(len(one.sizes), "size")
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return scroll(table, f"Error by learning rate, {number}", "whole")


def _row(size: SizeRates, middle: str) -> str:
    params = NONE if size.params is None else format_si(size.params)
    optimum = NONE if size.optimum is None else f"{size.optimum:.2g}"
    within = NONE if size.low is None or size.high is None else f"{size.low:.2g} to {size.high:.2g}"
    name = f'<th scope="row">{escape(size.arch)}</th>'
    return f"<tr>{name}<td>{params}</td>{middle}<td>{optimum}</td><td>{within}</td></tr>"


def _best_cells(size: SizeRates) -> str:
    tried = f"{len(size.tried)}, {size.tried[0]:.2g} to {size.tried[-1]:.2g}"
    tried += f", {len(size.diverged)} with runs that diverged" if size.diverged else ""
    return f"<td>{tried}</td><td>{size.best:.3g}</td><td>{100 * min(size.errors):.2f}</td>"


def _error_cells(size: SizeRates, rates: Sequence[float]) -> str:
    cells = []
    for rate in rates:
        lost = _divergence(size, rate)
        if rate in size.rates:
            error = f"{100 * size.errors[size.rates.index(rate)]:.2f}"
            cells.append(
                f"<td>{f'<strong>{error}</strong>' if rate == size.best else error}{lost and f' ({lost})'}</td>"
            )
        else:
            cells.append(f'<td class="quiet">{lost or NONE}</td>')
    return "".join(cells)


def _divergence(size: SizeRates, rate: float) -> str:
    """`2 of 3 diverged`, `diverged` where all did, nothing where none did."""
    diverged, tried = size.diverged.get(rate, (0, 0))
    if not diverged:
        return ""
    return "diverged" if diverged == tried else f"{diverged} of {tried} diverged"

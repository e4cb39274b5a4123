"""Everything that a report shows, gathered once: for the page, the figures, the files beside it, and W&B."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vitlight.analysis.chart_points import chart_points, published_points
from vitlight.analysis.charts import FamilyStyle, family_styles
from vitlight.analysis.curves import Curve, published_curves, run_curves
from vitlight.analysis.limits import state_limits
from vitlight.analysis.links import cell_links
from vitlight.analysis.points import Exclusion
from vitlight.analysis.published import load_published
from vitlight.analysis.rate_sets import RateSet, rate_sets
from vitlight.analysis.report_fits import FamilyFit, drawn_fits, fit_families
from vitlight.analysis.summary import summarise
from vitlight.analysis.tables import load_table

__all__ = ["Report", "gather_report"]


@dataclass(frozen=True, eq=False)
class Report:
    """`runs` are the own rows of the table and `published` the others. `points`, `panels` and `fits` are what the plots
    draw; `curves` come with the group of published ones, None for own ones. `num_bootstrap` 0: no law was asked for."""

    title: str
    folder: Path
    runs: pd.DataFrame
    summary: pd.DataFrame
    published: pd.DataFrame
    points: list[dict[str, Any]]
    curves: list[tuple[str | None, Curve]]
    fits: list[FamilyFit]
    excluded: list[Exclusion]
    panels: list[dict[str, Any]]
    limits: list[str]
    rates: list[RateSet]
    num_bootstrap: int

    @property
    def own_points(self) -> list[dict[str, Any]]:
        return [point for point in self.points if "group" not in point]

    @property
    def published_points(self) -> list[dict[str, Any]]:
        return [point for point in self.points if "group" in point]

    @property
    def figure_points(self) -> list[dict[str, Any]]:
        """What a figure shows that can't be switched: own points, or where there are none the largest group published."""
        published = self.published_points
        if self.own_points or not published:
            return self.own_points
        group, _ = Counter(point["group"] for point in published).most_common(1)[0]
        return [point for point in published if point["group"] == group]

    @property
    def sizes(self) -> list[int]:
        """The numbers of training images to tell apart: own ones, or where there is no own run those published."""
        points = self.own_points or self.published_points
        return sorted({point["images"] for point in points if point["images"] is not None})

    @property
    def styles(self) -> dict[str, FamilyStyle]:
        families = [point["family"] for point in self.points] + [curve.family for _, curve in self.curves]
        return family_styles(families + [one.family for one in self.fits])


def gather_report(
    sources: Iterable[str | Path],
    folder: Path,
    *,
    published: Sequence[str] = (),
    num_bootstrap: int = 200,
    fit_published: bool = False,
    title: str | None = None,
) -> Report:
    """Read `sources` (anything that `load_table` reads) and the package's tables named by `published`.

    `num_bootstrap` 0 leaves the laws out. Published results take part in laws only with `fit_published`, and never in a
    mean or a statement. Links are relative to `folder`. Raises InputError for a source that can't be read.
    """
    sources = list(sources)
    table = load_table(sources)
    is_published = table["is_published"].fillna(False).astype(bool)
    runs = table[~is_published].reset_index(drop=True)
    others = [table[is_published], *(load_published(name) for name in published)]
    others = [frame for frame in others if len(frame)]
    results = pd.concat(others, ignore_index=True) if others else table[is_published]
    summary = summarise(runs)
    points = chart_points(summary, cell_links(runs, summary, folder))
    points += published_points(results, len(points))
    curves: list[tuple[str | None, Curve]] = [(None, curve) for curve in run_curves(runs, summary)]
    curves += [(group, curve) for group, found in published_curves(results).items() for curve in found]
    fits: list[FamilyFit] = []
    excluded: list[Exclusion] = []
    if num_bootstrap:
        fitted = pd.concat([runs, results], ignore_index=True) if fit_published and len(results) else runs
        fits, excluded = fit_families(fitted, num_bootstrap, with_published=fit_published)
    warned = [one.family for one in fits if one.fit is not None and one.fit.warnings]
    names = dict.fromkeys(str(name) for name in runs["name"].dropna())
    if not names:
        names = dict.fromkeys([Path(source).stem for source in sources] if len(runs) else ["published results"])
    return Report(
        title or " + ".join(names),
        folder,
        runs,
        summary,
        results,
        points,
        curves,
        fits,
        excluded,
        drawn_fits(fits),
        state_limits(runs, summary, warned),
        rate_sets(runs),
        num_bootstrap,
    )

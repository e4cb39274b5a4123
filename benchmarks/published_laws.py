"""Laws fitted to the sweep that Scaling Vision Transformers published (Zhai et al. 2021, arXiv 2106.04560), tested on its
largest model: fitted without L/16, what do they say of L/16?

    python benchmarks/published_laws.py --markdown docs/laws.md

Two targets (error after fine-tuning at 384 px; 10-shot error), the four subsets of JFT alone and together, and three
laws: of compute alone over the runs that no cheaper run beats, of size and data, and of size and data with repeats. Size is
forward MACs at 224 px, for the models differ in patch size. Only L/16's label is certain; those of the other rows, which the
laws are fitted to, are inferred from their order and values. A law of compute is asked of the runs of L/16 that no other
run of no more compute beats, the others of all of them.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pages import write_measured

from vitlight.analysis.laws import FORMS, LawFit, Points, fit_law, leave_largest_out
from vitlight.analysis.points import law_points
from vitlight.analysis.quantities import format_si
from vitlight.analysis.summary import pareto_front
from vitlight.analysis.tables import load_table
from vitlight.errors import InputError

METRICS = {"finetune384": "fine-tuned at 384 px", "10shot": "10-shot"}
# The law that the paper prints, of more models and of compute in core-days: E = c + a (C + d)^-b.
PAPER = {"finetune384": {"c": 0.09, "b": 0.35}, "10shot": {"c": 0.12, "b": 0.32}}
TOGETHER = "all four"
LAWS = ("compute_shift", "size_data", "size_data_repeated")
HELD_ARCH = "vit_l16"
EXA = 1e18


@dataclass(frozen=True)
class Tested:
    """One law, fitted to `kept` and asked for `held`; arrays have an element for each held-out run."""

    metric: str
    images: str
    form: str
    fit: LawFit
    held: Points
    predicted: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        return (self.low <= self.held.error) & (self.held.error <= self.high)

    @property
    def log_errors(self) -> np.ndarray:
        return np.log(self.predicted / self.held.error)


def sweep(metric: str) -> pd.DataFrame:
    runs = load_table(["published:scaling_vit"])
    return runs[runs["metric"] == metric]


def points_of(runs: pd.DataFrame) -> Points:
    """Compute in exaFLOPs, size in forward MACs."""
    points, excluded = law_points(runs, x="train_flops", size="forward_macs", axes=("compute", "params", "samples"))
    assert not excluded, excluded[:3]
    return Points(
        points.error,
        points.compute / EXA,
        points.params,
        points.samples,
        points.unique_samples,
        points.groups,
        points.labels,
    )


def fittable(points: Points, form: str) -> Points:
    """Of a law of compute, the runs that none of no more compute beats."""
    return points.take(np.sort(pareto_front(points.compute, -points.error))) if form == "compute_shift" else points


def of_held_arch(points: Points) -> np.ndarray:
    return np.array([label.startswith(HELD_ARCH) for label in points.labels])


def subsets(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for images in sorted(runs["num_train_samples"].dropna().unique()):
        yield billions(float(images)), runs[runs["num_train_samples"] == images]
    yield TOGETHER, runs


def tested(metric: str, images: str, runs: pd.DataFrame, form: str) -> Tested:
    points = points_of(runs)
    fit = fit_law(fittable(points.take(~of_held_arch(points)), form), form)
    asked = fittable(points, form)
    held = asked.take(of_held_arch(asked))
    axes = {name: held.axis(name) for name in FORMS[form].axes}
    return Tested(metric, images, form, fit, held, fit.predict(**axes), *fit.prediction_band(**axes))


def billions(images: float) -> str:
    """As the paper writes them: 30M, 1B."""
    return format_si(images).replace("G", "B")


def percent(part: float) -> str:
    return f"{100 * part:.1f} %"


def summary_table(results: list[Tested]) -> Iterator[str]:
    yield "| target | JFT images | law | fitted to | L/16 off by | on average | in the 90 % band | floor | exponents |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---|"
    for one in results:
        parameters, form = one.fit.parameters, one.fit.form
        floor = parameters[form.parameters[0]]
        exponents = ", ".join(
            f"{name} {parameters[name]:.2f}" for name in form.parameters if name in ("b", "alpha", "beta")
        )
        yield (
            f"| {METRICS[one.metric]} | {one.images} | `{one.form}` | {len(one.fit.points)} | "
            f"{percent(np.abs(one.log_errors).mean())} | "
            f"{100 * one.log_errors.mean():+.1f} % | {one.inside.sum()} of {len(one.inside)} | {floor:.3f} | {exponents} |"
        )


def runs_table(results: list[Tested], metric: str) -> Iterator[str]:
    """Of each L/16 run: what was read, and what each law, of its own subset and of all four, says."""
    by_images = {(one.images, one.form): one for one in results if one.metric == metric}
    columns = [("own", form) for form in LAWS] + [(TOGETHER, form) for form in LAWS]
    yield (
        "| JFT images | images seen | error read | "
        + " | ".join(f"`{form}`, {'own subset' if where == 'own' else where}" for where, form in columns)
        + " |"
    )
    yield "|---|---:|---:|" + "---:|" * len(columns)
    for images in dict.fromkeys(images for images, _ in by_images if images != TOGETHER):
        for place, label in enumerate(by_images[images, "size_data"].held.labels):
            cells = []
            for where, form in columns:
                one = by_images[images if where == "own" else where, form]
                if label not in one.held.labels:
                    cells.append("–")
                    continue
                at = one.held.labels.index(label)
                cells.append(f"{one.predicted[at]:.3f}" + ("" if one.inside[at] else " ✗"))
            held = by_images[images, "size_data"].held
            yield (
                f"| {images} | {billions(held.samples[place])} | {held.error[place]:.3f} | " + " | ".join(cells) + " |"
            )


def largest_table(all_runs: dict[str, pd.DataFrame]) -> Iterator[str]:
    """The largest quarter of the compute held out, as `vitlight law` does."""
    yield "| target | JFT images | law | fitted to | held out | off by | in the 90 % band |"
    yield "|---|---|---|---:|---:|---:|---:|"
    for metric, runs in all_runs.items():
        for images, of_images in subsets(runs):
            for form in LAWS:
                try:
                    held = leave_largest_out(fittable(points_of(of_images), form), form)
                except InputError as error:
                    yield f"| {METRICS[metric]} | {images} | `{form}` | – | – | {error} | – |"
                    continue
                yield (
                    f"| {METRICS[metric]} | {images} | `{form}` | {len(held.fit.points)} | {len(held.labels)} | "
                    f"{percent(held.mean_abs_log_error)} | {held.inside.sum()} of {len(held.inside)} |"
                )


def paper_table(all_runs: dict[str, pd.DataFrame]) -> Iterator[str]:
    """The law of compute over the best of all runs, beside the one that the paper prints."""
    yield "| target | runs | floor c | from, to (90 %) | paper's | exponent b | from, to (90 %) | paper's |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for metric, runs in all_runs.items():
        fit = fit_law(fittable(points_of(runs), "compute_shift"), "compute_shift")
        cells = []
        for name in ("c", "b"):
            low, high = fit.intervals[name]
            cells.append(f"{fit.parameters[name]:.3f} | {low:.3f}, {high:.3f} | {PAPER[metric][name]}")
        yield f"| {METRICS[metric]} | {len(fit.points)} | {' | '.join(cells)} |"


def render() -> str:
    all_runs = {metric: sweep(metric) for metric in METRICS}
    results, failures = [], []
    for metric, runs in all_runs.items():
        for images, of_images in subsets(runs):
            for form in LAWS:
                try:
                    results.append(tested(metric, images, of_images, form))
                except InputError as error:
                    failures.append(f"* {METRICS[metric]}, {images} images, `{form}`: not fitted: {error}")
    lines = [
        "### The paper's own law",
        "",
        *paper_table(all_runs),
        "",
        "### L/16 held out",
        "",
        *summary_table(results),
        "",
        *failures,
        "",
    ]
    for metric, title in METRICS.items():
        lines += [f"### Each run of L/16: error {title}", ""]
        lines += ["✗: outside the 90 % prediction band. –: another run of no more compute has less error.", ""]
        lines += [*runs_table(results, metric), ""]
    lines += ["### The largest quarter by compute held out", "", *largest_table(all_runs)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write between the marks of this page")
    page = parser.parse_args().markdown
    text = render()
    if page is not None:
        write_measured(page, text)
    else:
        print(text)


if __name__ == "__main__":
    main()

"""How often the intervals of a law hold the truth, and how often the tests of its residuals warn of a right form.

    python benchmarks/law_coverage.py --markdown docs/laws.md

Draws noisy measurements of known laws (tests/analysis/laws/known_laws.py), fits each of them, and counts. The noise is of
log error: normal, but Student's with 3.5 degrees of freedom under "heavy tails", and four times as large at the largest
setting as at the smallest under "uneven noise". Shares depend on --draws, --bootstrap and --seed alone; a fit's time is
processor time of one thread.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from pages import write_measured

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.analysis.laws.known_laws import DESIGNS, REPLICATED, UNUSUAL, Design
from vitlight.analysis.laws import FORMS, INTERVAL_METHODS, LawFit, fit_law
from vitlight.analysis.laws.structure import spread, structure

CASES = {**DESIGNS, "compute, 3 seeds": REPLICATED, **UNUSUAL}


def holds(fit: LawFit, truth: dict[str, float]) -> list[bool]:
    return [low <= truth[name] <= high for name, (low, high) in fit.intervals.items()]


def beyond(design: Design) -> dict[str, float]:
    """A setting twice as far as the largest on every axis."""
    return {name: 2 * float(values.max()) for name, values in design.axes.items()}


def measure(design: Design, draws: int, bootstrap: int, seed: int) -> dict[str, list]:
    """One element a draw: which intervals of each method hold, whether the bands do, the tests' p values, seconds."""
    random = np.random.default_rng(seed)
    found: dict[str, list] = {
        method: [] for method in (*INTERVAL_METHODS, "band", "new run", "form", "spread", "seconds")
    }
    where = beyond(design)
    truth = FORMS[design.form].error(np.array([list(design.parameters.values())]), where)[0]
    for _ in range(draws):
        points = design.points(random)
        began = time.process_time()
        fit = fit_law(points, design.form, num_bootstrap=bootstrap)
        found["seconds"].append(time.process_time() - began)
        profile = fit_law(points, design.form, num_bootstrap=0, interval_method="profile")
        found["bootstrap"].append(holds(fit, design.parameters))
        found["profile"].append(holds(profile, design.parameters))
        low, high = fit.band(**where)
        found["band"].append(bool(low <= truth <= high))
        low, high = fit.prediction_band(**where)
        new = truth * np.exp(design.new_run(random))
        found["new run"].append(bool(low <= new <= high))
        found["form"].append(structure(fit.solution).p_value)
        found["spread"].append(spread(fit.solution).p_value)
    return found


def percent(values: list[bool]) -> str:
    return f"{100 * float(np.mean(values)):.1f}"


def render(results: dict[str, dict[str, list]], draws: int, bootstrap: int) -> str:
    lines = [
        "| law | points | parameter | bootstrap, % | profile, % |",
        "|---|---|---|---|---|",
    ]
    for case, found in results.items():
        design = CASES[case]
        num_points = len(design.points())
        for index, name in enumerate(design.parameters):
            held = {method: percent([one[index] for one in found[method]]) for method in INTERVAL_METHODS}
            lines.append(f"| {case} | {num_points} | {name} | {held['bootstrap']} | {held['profile']} |")
        lines.append(f"| {case} | {num_points} | the law at twice the largest setting | {percent(found['band'])} | |")
        lines.append(f"| {case} | {num_points} | a new run there | {percent(found['new run'])} | |")
    lines += [
        "",
        f"How many of {draws} noisy measurements of each law give a 90 % interval that holds the truth; {bootstrap} "
        f"bootstrap draws each. By chance alone a share of 90 % is off by {100 * np.sqrt(0.09 / draws):.1f} "
        "(one standard deviation). Noise is normal; heavy tails are Student's with 3.5 degrees of freedom, uneven noise "
        "grows fourfold from the smallest setting to the largest.",
        "",
        "| law | residuals follow an axis, at 1 % | at 10 % | their spread does, at 1 % | at 10 % | processor s a fit |",
        "|---|---|---|---|---|---|",
    ]
    for case, found in results.items():
        flagged = [
            percent([chance < rate for chance in found[test]]) for test in ("form", "spread") for rate in (0.01, 0.1)
        ]
        lines.append(f"| {case} | {' | '.join(flagged)} | {median(found['seconds']):.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="laws measured at once")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--markdown", type=Path, help="a page whose part between the marks is replaced")
    arguments = parser.parse_args()
    measured = partial(measure, draws=arguments.draws, bootstrap=arguments.bootstrap, seed=arguments.seed)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        designs = [CASES[case] for case in arguments.cases]
        results = dict(zip(arguments.cases, pool.map(measured, designs), strict=True))
    text = render(results, arguments.draws, arguments.bootstrap)
    print(text)
    if arguments.markdown:
        write_measured(arguments.markdown, text, "coverage")


if __name__ == "__main__":
    main()

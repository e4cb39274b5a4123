"""How often the intervals of a law hold the truth, and how often the tests of its residuals warn of a right form.

    python benchmarks/law_coverage.py --markdown docs/laws.md

Draws noisy measurements of known laws (tests/analysis/laws/known_laws.py), fits each of them, and counts. The noise is
normal, of log error. Figures depend on --draws, --bootstrap and --seed alone; only the time of a fit depends on the machine.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from pages import write_measured

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.analysis.laws.known_laws import DESIGNS, REPLICATED, Design
from vitlight.analysis.laws import FORMS, INTERVAL_METHODS, LawFit, fit_law
from vitlight.analysis.laws.structure import structure_p_value

CASES = {**DESIGNS, "compute, 3 seeds": REPLICATED}


def holds(fit: LawFit, truth: dict[str, float]) -> list[bool]:
    return [low <= truth[name] <= high for name, (low, high) in fit.intervals.items()]


def beyond(design: Design) -> dict[str, float]:
    """A setting twice as far as the largest on every axis."""
    return {name: 2 * float(values.max()) for name, values in design.axes.items()}


def measure(design: Design, draws: int, bootstrap: int, seed: int) -> dict[str, list]:
    """One element a draw: for each method which intervals hold, for the band whether it does, p, warnings and seconds."""
    random = np.random.default_rng(seed)
    found: dict[str, list] = {method: [] for method in (*INTERVAL_METHODS, "band", "new run", "p", "seconds")}
    where = beyond(design)
    truth = FORMS[design.form].error(np.array([list(design.parameters.values())]), where)[0]
    for _ in range(draws):
        points = design.points(random)
        began = time.perf_counter()
        fit = fit_law(points, design.form, num_bootstrap=bootstrap)
        found["seconds"].append(time.perf_counter() - began)
        profile = fit_law(points, design.form, num_bootstrap=0, interval_method="profile")
        found["bootstrap"].append(holds(fit, design.parameters))
        found["profile"].append(holds(profile, design.parameters))
        low, high = fit.band(**where)
        found["band"].append(bool(low <= truth <= high))
        low, high = fit.prediction_band(**where)
        new = truth * np.exp(random.normal(0, np.hypot(design.cell_sd, design.seed_sd)))
        found["new run"].append(bool(low <= new <= high))
        found["p"].append(structure_p_value(fit.solution))
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
        "(one standard deviation).",
        "",
        "| law | residuals said to follow the axes, at 1 % | at 10 % | seconds a fit |",
        "|---|---|---|---|",
    ]
    for case, found in results.items():
        chances = np.array(found["p"])
        lines.append(
            f"| {case} | {percent(list(chances < 0.01))} | {percent(list(chances < 0.1))} | {median(found['seconds']):.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--markdown", type=Path, help="a page whose part between the marks is replaced")
    arguments = parser.parse_args()
    results = {
        case: measure(CASES[case], arguments.draws, arguments.bootstrap, arguments.seed) for case in arguments.cases
    }
    text = render(results, arguments.draws, arguments.bootstrap)
    print(text)
    if arguments.markdown:
        write_measured(arguments.markdown, text, "coverage")


if __name__ == "__main__":
    main()

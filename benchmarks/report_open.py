"""How long a report takes to write and to open in a browser, by its number of runs.

    python benchmarks/report_open.py [--markdown docs/report.md]

Runs are made up (tests/analysis/fake_runs.py): four model sizes of three families, several data sizes and seeds, each with a
record of 20 evaluations. Writing is the whole of `vitlight report` but for the start of Python. Opening is measured by
headless Chromium in a profile of its own, from the start of the navigation to the second frame after its load event, by
which the page's script has drawn every chart; beside it the CPU seconds of the page's main thread, whatever else ran.
The file is in the page cache. What other processes used of the machine is measured for two seconds before the first case:
above a few hundredths of a core the times of opening say little.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.pages import write_measured
from tests.analysis.fake_runs import FAMILIES, result, write_evaluations, write_run
from tests.browser import Browser
from vitlight.analysis.report import write_report

RUNGS = (1, 2, 3, 4)
WIDTHS = {"desktop": 1280, "phone": 390}


@dataclass(frozen=True)
class Case:
    """A report of families x RUNGS x `num_sizes` x `num_seeds` runs."""

    num_sizes: int
    num_seeds: int
    published: tuple[str, ...] = ()

    @property
    def num_runs(self) -> int:
        return len(FAMILIES) * len(RUNGS) * self.num_sizes * self.num_seeds

    def __str__(self) -> str:
        cells = self.num_runs // self.num_seeds
        beside = f", with published:{', '.join(self.published)}" if self.published else ""
        return f"{self.num_runs} runs in {cells} cells{beside}"


CASES = (Case(3, 2), Case(7, 6), Case(42, 1), Case(42, 1, ("models",)))


def write_runs(case: Case, root: Path) -> None:
    sizes = [round(500 * 1.16**i) for i in range(case.num_sizes)]
    for family in FAMILIES:
        for rung in RUNGS:
            for size in sizes:
                for seed in range(case.num_seeds):
                    write_evaluations(write_run(root, result(f"{family}_nano{rung}", size, seed)), num=20)


def open_seconds(browser: Browser, page: Path, width: int) -> tuple[float, float]:
    """From the start of the navigation to the second frame after the load event; CPU of the page's main thread."""
    browser.open(page, width)
    browser.driver.execute_cdp_cmd("Performance.disable", {})
    browser.driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})  # counts from here
    browser.driver.get(page.as_uri())
    browser.driver.execute_async_script(
        "const end = arguments[0], done = () => { window.framed = performance.now(); end(); };"
        "requestAnimationFrame(() => requestAnimationFrame(done))"
    )
    framed = browser.run("window.framed / 1000")
    assert isinstance(framed, float)
    metrics = browser.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    spent = next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")
    browser.assert_quiet(page)
    return framed, spent


def busy_seconds() -> float:
    """CPU seconds of the whole machine so far, idle ones left out."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def measure(case: Case, folder: Path, rounds: int) -> list[str]:
    """Cells of the table's row."""
    write_runs(case, folder / "runs")
    start = time.process_time()
    page = write_report(folder / "runs", folder / "out", published=case.published)
    writing = time.process_time() - start
    cells = [str(case), f"{page.stat().st_size / 1e6:.1f}", f"{writing:.1f}"]
    for width in WIDTHS.values():
        browser = Browser(folder / f"profile-{width}")
        try:
            found = [open_seconds(browser, page, width) for _ in range(rounds)]
        finally:
            browser.driver.quit()
        wall, spent = ([one[i] for one in found] for i in (0, 1))
        cells.append(f"{median(wall):.2f} ({min(wall):.2f} to {max(wall):.2f}); {median(spent):.2f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="openings of each page (default: 7)")
    parser.add_argument("--markdown", type=Path, help="page whose part between the marks is replaced")
    arguments = parser.parse_args()
    rows, idle = [], busy_seconds()
    time.sleep(2)
    load = (busy_seconds() - idle) / 2
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(case, Path(folder), arguments.rounds))
        print(" | ".join(rows[-1]), flush=True)
    heads = ["report", "MB", "writing, CPU s", *(f"opening on a {name} ({width} px)" for name, width in WIDTHS.items())]
    lines = [" | ".join(heads), " | ".join(["---"] + ["---:"] * (len(heads) - 1)), *(" | ".join(row) for row in rows)]
    text = "\n".join(f"| {line} |" for line in lines)
    text += (
        f"\n\nWriting: CPU seconds. Opening: seconds, median of {arguments.rounds} (least to most); CPU seconds, median. "
        f"Other processes used {load:.2f} of {os.cpu_count()} cores before the first case."
    )
    print(text)
    if arguments.markdown:
        write_measured(arguments.markdown, text)


if __name__ == "__main__":
    main()

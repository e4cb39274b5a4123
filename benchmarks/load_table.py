"""What a run table costs to load: 500 run directories, the same as CSV, the published results.

    python benchmarks/load_table.py --write

`--write` puts the figures into docs/tables.md. CPU seconds of one process, the least of five.
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.pages import cpu_name, write_measured  # noqa: E402
from tests.analysis.fake_runs import result, write_run  # noqa: E402
from vitlight.analysis.published import load_published  # noqa: E402
from vitlight.analysis.tables import load_table  # noqa: E402

NUM_RUNS = 500


def least_seconds(load: Callable[[], pd.DataFrame]) -> tuple[int, float]:
    """Rows, and CPU seconds of the fastest of five."""
    taken = []
    for _ in range(5):
        began = time.process_time()
        rows = len(load())
        taken.append(time.process_time() - began)
    return rows, min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/tables.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs, table = Path(folder) / "runs", Path(folder) / "table.csv"
        for number in range(NUM_RUNS):
            write_run(runs, result("vit_nano1", 500 + number, number))
        load_table(runs).to_csv(table, index=False)
        measured = [
            ("run directories, finished", *least_seconds(lambda: load_table(runs))),
            ("the same table as CSV", *least_seconds(lambda: load_table(table))),
            ("`published:models`", *least_seconds(lambda: load_published("models"))),
            ("`published:scaling_vit`", *least_seconds(lambda: load_published("scaling_vit"))),
        ]
    lines = ["| | rows | CPU seconds |", "|---|---|---|"]
    lines += [f"| {what} | {rows} | {seconds:.2f} |" for what, rows, seconds in measured]
    versions = f"{cpu_name()}, pandas {pd.__version__}, Python {platform.python_version()}"
    text = "\n".join([*lines, "", f"The least of five, one process, files in the page cache; {versions}."])
    print(text)
    if args.write:
        write_measured(ROOT / "docs" / "tables.md", text)


if __name__ == "__main__":
    main()

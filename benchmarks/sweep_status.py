"""What `vitlight sweep status` takes for 500 cells, in CPU time of a process from its start to its end.

    python benchmarks/sweep_status.py --markdown docs/sweeps.md

The sweep of plan_sweep.py with its five seeds: 300 cells are done, 6 have failed, 4 are running with a record of 2,000 rows
each, and the others wait.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from pages import cpu_name, write_measured
from plan_sweep import THIRD_AXIS, sweep_file

from vitlight.data.synthetic import synth
from vitlight.sweep import PlannedCell, load_sweep, plan_sweep
from vitlight.sweep.claims import Claims
from vitlight.sweep.status import claim_path
from vitlight.sweep.tally import open_directory

NUM_DONE, NUM_FAILED, NUM_RUNNING, NUM_ROWS = 300, 6, 4, 2000
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write the table between two marks of this page")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Claims() as claims, ExitStack() as held:
        data = Path(folder)
        synth(data, num_train=2000, num_test=100)
        path = sweep_file(data, *THIRD_AXIS["five seeds"])
        planned = plan_sweep(load_sweep(path))
        open_directory(planned, path)
        _pretend(planned, claims, held)
        directory = data / "runs" / "planned"
        places = {"the sweep file": path, "the directory": directory}
        measured = {
            f"{name}{' --json' if option else ''}": [_run(place, *option) for _ in range(ROUNDS)]
            for name, place in places.items()
            for option in ((), ("--json",))
        }
        (directory / "plan.json").unlink()
        measured["the sweep file, which nobody has run or looked at"] = [_run(path)]
    rows = [f"| {name} | {len(planned)} | {median(times):.2f} |" for name, times in measured.items()]
    head = ["| status of | cells | CPU time [s] |", "|---|---:|---:|"]
    what = f"{cpu_name()}, Python {sys.version.split()[0]}, CPU time of the whole process, median of {ROUNDS} processes"
    text = "\n".join([what, "", *head, *rows])
    print(text)
    if args.markdown is not None:
        write_measured(args.markdown, text, "status")


def _pretend(planned: list[PlannedCell], claims: Claims, held: ExitStack) -> None:
    """The records of runs that are done, have failed and are running."""
    last = NUM_DONE + NUM_FAILED + NUM_RUNNING
    for number, item in enumerate(planned[:last]):
        run = item.run
        run.run_dir.mkdir(parents=True)
        seconds = run.train_flops / 1e13
        result = {
            "status": "done",
            "top1": 0.5,
            "samples_seen": run.horizon_samples,
            "own_train_flops": item.own_train_flops,
            "own_device_seconds": seconds,
            "device_seconds": seconds,
            "wall_seconds": seconds,
            "num_ranks": 1,
            "origin": None,
            "perf": {"startup_seconds": 1.0, "data_wait": 0.01},
        }
        if number < NUM_DONE:
            (run.run_dir / "result.json").write_text(json.dumps(result))
        elif number < NUM_DONE + NUM_FAILED:
            (run.run_dir / "result.json").write_text(json.dumps({"status": "failed", "reason": "out of memory"}))
        else:
            held.callback(_taken(claims, item))
            with (run.run_dir / "metrics.jsonl").open("w") as file:
                for row in range(NUM_ROWS):
                    values = {
                        "event": "train",
                        "step": row,
                        "data/samples_seen": row,
                        "time/wall_seconds": 1.0 + row,
                        "time/device_seconds": 1.0 + row,
                        "perf/images_per_second": 100.0,
                        "perf/data_wait_fraction": 0.01,
                        "train/loss": 1.0,
                    }
                    file.write(json.dumps(values) + "\n")


def _taken(claims: Claims, item: PlannedCell) -> Callable[[], None]:
    claim = claims.take(claim_path(item))
    assert claim is not None
    return claim.release


def _run(place: Path, *options: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "vitlight", "sweep", "status", str(place), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()

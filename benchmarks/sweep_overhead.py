"""What a cell of a sweep costs beyond its training: warm cells beside separate processes, in turn.

    python benchmarks/sweep_overhead.py --markdown docs/sweeps.md --json OUT.json

A cell trains for a few steps. Its overhead is the wall time from the executor's start until it knows the exit code, less the
time from the first step to the last, which is the training itself; so the first step's own cost, evaluation, checkpoint and
result count as overhead. The cells of a round differ in their executor alone; they run one after the other, in an order that
changes from round to round, and ratios are taken within a round.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pages import cpu_name, write_measured
from tables import spread

from vitlight.data.synthetic import synth
from vitlight.sweep.executors import Executor, LocalExecutor
from vitlight.sweep.warm import WarmExecutor
from vitlight.training.record import code_commit, package_versions

HERE = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.005
STEPS = 8


@dataclass(frozen=True)
class Case:
    """A cell's settings beside the common ones."""

    title: str
    settings: tuple[str, ...]


CASES = (
    Case("vit_nano1", ("--model.arch=vit_nano1", "--run.wandb=false", "--data.num_workers=0")),
    Case("resnet_nano1", ("--model.arch=resnet_nano1", "--run.wandb=false", "--data.num_workers=0")),
    Case("coatnet_nano1", ("--model.arch=coatnet_nano1", "--run.wandb=false", "--data.num_workers=0")),
    Case("vit_nano1, W&B offline", ("--model.arch=vit_nano1", "--run.wandb=true", "--data.num_workers=0")),
    Case("vit_nano1, 2 loader workers", ("--model.arch=vit_nano1", "--run.wandb=false", "--data.num_workers=2")),
)


def cell_arguments(case: Case, data: Path, root: Path) -> list[str]:
    return [
        "fit",
        f"--config={HERE / 'experiments' / 'base.yaml'}",
        f"--run.root={root}",
        "--run.num_evaluations=1",
        "--run.log_every_steps=1",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        f"--model.duration.samples={16 * STEPS}",
        f"--data.train={data / 'train'}",
        f"--data.test={data / 'test'}",
        "--data.num_classes=10",
        "--data.image_size=28",
        "--data.global_batch_size=16",
        *case.settings,
    ]


def run_cell(executor: Executor, case: Case, data: Path, root: Path) -> dict[str, float]:
    """Wall seconds of the cell, and of its training from the first step to the last."""
    root.mkdir()
    claim = os.open(root / "claim", os.O_RDWR | os.O_CREAT)
    began = time.perf_counter()
    job = executor.start(cell_arguments(case, data, root), 0, root / "log", claim)
    while (code := job.poll()) is None:
        time.sleep(POLL_SECONDS)
    wall = time.perf_counter() - began
    os.close(claim)
    if code:
        raise SystemExit(f"{case.title} ended with {code}\n{(root / 'log').read_text()}")
    (metrics,) = root.glob("*/*/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    seconds = [row["time/wall_seconds"] for row in rows if row["event"] == "train"]
    return {"wall": wall, "training": seconds[-1] - seconds[0]}


def measure(case: Case, executors: dict[str, Executor], data: Path, folder: Path, rounds: int) -> dict[str, Any]:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in executors}
    for number in range(rounds):
        for name in executors if number % 2 == 0 else reversed(executors):
            root = folder / f"{case.title.replace(' ', '-')}-{name}-{number}"
            results[name].append(run_cell(executors[name], case, data, root))
    return {"title": case.title, "results": results}


def overheads(results: list[dict[str, float]]) -> list[float]:
    return [one["wall"] - one["training"] for one in results]


def render(report: dict[str, Any]) -> str:
    machine = report["machine"]
    lines = [
        "| cell of 8 steps | separate process, s beyond training | warm, s beyond training | separate / warm |",
        "|---|---|---|---|",
    ]
    for entry in report["measured"]:
        separate, warm = (overheads(entry["results"][name]) for name in ("separate", "warm"))
        ratios = [one / other for one, other in zip(separate, warm, strict=True)]
        cells = [entry["title"], spread(separate, "{:.2f}".format), spread(warm, "{:.2f}".format)]
        lines.append("| " + " | ".join([*cells, spread(ratios, "{:.1f}".format)]) + " |")
    return "\n".join(
        [
            *lines,
            "",
            f"Median (least to most) of {report['rounds']} rounds in turn; {machine['cores']} cores, {machine['cpu']}, "
            f"Python {machine['python']}, torch {machine['torch']}, lightning {machine['lightning']}, commit "
            f"{machine['commit']}. The first warm cell, which waits for the imports, took "
            f"{overheads([report['first']])[0]:.1f} s.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", type=int, default=range(len(CASES)), help="by their number, from 0")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="a page whose part between the marks is replaced")
    arguments = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    measured = []
    with tempfile.TemporaryDirectory(prefix="vitlight-overhead-") as name, WarmExecutor() as warm:
        folder = Path(name)
        synth(folder / "data", num_train=200, num_test=64, image_size=28, num_classes=10)
        first = run_cell(warm, CASES[0], folder / "data", folder / "first")
        executors: dict[str, Executor] = {"separate": LocalExecutor(), "warm": warm}
        for number in arguments.cases:
            measured.append(measure(CASES[number], executors, folder / "data", folder, arguments.rounds))
            entry = measured[-1]["results"]
            print(
                measured[-1]["title"],
                {name: f"{median(overheads(one)):.2f} s" for name, one in entry.items()},
                flush=True,
            )
    machine = {"cores": len(os.sched_getaffinity(0)), "cpu": cpu_name(), "system": platform.platform()}
    report = {
        "machine": {**machine, "commit": code_commit(), **package_versions()},
        "rounds": arguments.rounds,
        "first": first,
        "measured": measured,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    page = render(report)
    print(page)
    if arguments.markdown:
        write_measured(arguments.markdown, page, "overhead")


if __name__ == "__main__":
    main()

"""Steps per second of `vitlight fit` beside the plainest PyTorch loop: the same network, images, batch and precision.

    python benchmarks/loop_overhead.py --markdown docs/benchmarks/loop_overhead.md --json OUT.json

Each contender is a new process in each round, forked from one that has imported everything; they take turns, in an order
that changes from round to round, and ratios are taken within a round. benchmarks/README.md says what is compared.
"""

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from forked import free_port, preload
from loop_overhead_run import LoopCase, fit_settings, train
from measure import busy_seconds
from pages import cpu_name, write_measured
from tables import spread

CONTENDERS = ("fit", "bare")
# With the steps of a round. 128 is the batch of experiments/fashion_mnist.yaml; the smallest network at half of that is the
# shortest step that anybody would train with.
CASES = (
    (LoopCase("vit_nano1", 28, 128, held=True), 300),
    (LoopCase("vit_nano1", 28, 128, held=False), 300),
    (LoopCase("resnet_nano1", 28, 128, held=True), 500),
    (LoopCase("resnet_nano1", 28, 128, held=False), 400),
    (LoopCase("resnet_nano1", 28, 64, held=True), 900),
    (LoopCase("vit_ti16", 64, 64, held=True), 120),
    (LoopCase("vit_ti16", 64, 64, held=False), 120),
)
RANK_CASES = ((LoopCase("vit_ti16", 64, 64, held=True, num_ranks=2), 120),)
WARMUP_STEPS = 20


def run_once(contender: str, case: LoopCase, data: Path, steps: int, threads: int) -> dict[str, float]:
    """Wall and CPU seconds of a step; the CPU seconds are the sum over the ranks."""
    context, port = multiprocessing.get_context("fork"), free_port()
    with tempfile.TemporaryDirectory(prefix="vitlight-loop-") as name:
        folder = Path(name)
        arguments = fit_settings(case, data, folder / "runs", steps)
        ranks = [
            context.Process(target=train, args=(contender, case, arguments, folder, rank, port, threads, WARMUP_STEPS))
            for rank in range(case.num_ranks)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            codes = [process.exitcode for process in ranks]
            raise SystemExit(f"{contender} ended with {codes}\n" + (folder / "log-0.txt").read_text())
        clocks = [json.loads((folder / f"clock-{rank}.json").read_text()) for rank in range(case.num_ranks)]
    return {
        "seconds": max(clock["seconds"] for clock in clocks),
        "cpu_seconds": sum(clock["cpu_seconds"] for clock in clocks),
    }


def measure(case: LoopCase, data: Path, steps: int, rounds: int, threads: int) -> dict[str, Any]:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    began, busy = time.perf_counter(), busy_seconds()
    own = _children_seconds()
    for number in range(rounds):
        for name in CONTENDERS if number % 2 == 0 else CONTENDERS[::-1]:
            results[name].append(run_once(name, case, data, steps, threads))
    others = (busy_seconds() - busy - (_children_seconds() - own)) / (time.perf_counter() - began)
    return {**asdict(case), "title": case.title, "steps": steps, "results": results, "others_busy": max(0.0, others)}


def _children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system + times.user + times.system


def ratios(entry: dict[str, Any], clock: str) -> list[float]:
    """Steps per second of fit over those of the bare loop, in each round."""
    pairs = zip(entry["results"]["bare"], entry["results"]["fit"], strict=True)
    return [bare[clock] / fit[clock] for bare, fit in pairs]


def render(report: dict[str, Any]) -> str:
    machine, measured = report["machine"], report["measured"]
    columns = (
        "network | images | ranks | bare loop, ms a step | vitlight fit, ms a step | overhead, CPU-ms a step | "
        "fit / bare, steps per second | fit / bare, by CPU time"
    )
    lines = [
        f"{machine['cores']} cores, {machine['cpu']}, {machine['system']}, Python {machine['python']}, torch "
        f"{machine['torch']}, lightning {machine['lightning']}, commit {machine['commit']}; float32, "
        f"{report['threads']} threads a rank; median (least to most) of {report['rounds']} rounds in turn; "
        f"{report['minutes']:.0f} minutes.",
        "",
        "Meanwhile everything else on these cores used "
        f"{spread([entry['others_busy'] for entry in measured], '{:.2f}'.format)} of a core.",
        "",
        f"| {columns} |",
        "|---" * (columns.count("|") + 1) + "|",
    ]
    for entry in measured:
        results = entry["results"]
        milliseconds = {name: [1e3 * one["seconds"] for one in results[name]] for name in CONTENDERS}
        over = [
            1e3 * (fit["cpu_seconds"] - bare["cpu_seconds"])
            for fit, bare in zip(results["fit"], results["bare"], strict=True)
        ]
        cells = (
            entry["title"],
            "held in memory" if entry["held"] else "from shards",
            entry["num_ranks"],
            spread(milliseconds["bare"], "{:.2f}".format),
            spread(milliseconds["fit"], "{:.2f}".format),
            spread(over, "{:.2f}".format),
            spread(ratios(entry, "seconds"), "{:.3f}".format),
            spread(ratios(entry, "cpu_seconds"), "{:.3f}".format),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, *_rank_lines(measured)]) + "\n"


def _rank_lines(measured: list[dict[str, Any]]) -> list[str]:
    """Two processes beside one, at the same global batch."""
    alone = {(one["title"], one["held"]): one for one in measured if one["num_ranks"] == 1}
    lines = []
    for entry in measured:
        single = alone.get((entry["title"], entry["held"]))
        if entry["num_ranks"] == 1 or single is None:
            continue
        speeds = {
            name: median(one["seconds"] for one in single["results"][name])
            / median(one["seconds"] for one in entry["results"][name])
            for name in CONTENDERS
        }
        lines += [
            "",
            f"{entry['title']}: {entry['num_ranks']} processes make {speeds['fit']:.2f} times the steps per second of one, "
            f"the bare loop under DistributedDataParallel {speeds['bare']:.2f} times (medians; the same global batch).",
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*CASES, *RANK_CASES]
    parser.add_argument("--cases", nargs="+", type=int, default=range(len(every)), help="by their number, from 0")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="a page whose part between the marks is replaced")
    parser.add_argument("--mark", default="measured", help="what these marks say")
    arguments = parser.parse_args()
    preload()
    from vitlight.data.synthetic import synth
    from vitlight.training.record import code_commit, package_versions

    began = time.perf_counter()
    measured = []
    with tempfile.TemporaryDirectory(prefix="vitlight-loop-data-") as folder:
        for number in arguments.cases:
            case, steps = every[number]
            data = Path(folder) / str(case.image_size)
            if not data.exists():
                synth(data, num_train=2000, num_test=64, image_size=case.image_size, num_classes=10)
            measured.append(measure(case, data, steps, arguments.rounds, arguments.threads))
            shares = {clock: f"{median(ratios(measured[-1], clock)):.3f}" for clock in ("seconds", "cpu_seconds")}
            print(case.title, "held" if case.held else "shards", case.num_ranks, shares, flush=True)
    machine = {"cores": len(os.sched_getaffinity(0)), "cpu": cpu_name(), "system": platform.platform()}
    report = {
        "machine": {**machine, "commit": code_commit(), **package_versions(), "torch": torch.__version__},
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "minutes": (time.perf_counter() - began) / 60,
        "measured": measured,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    page = render(report)
    print(page)
    if arguments.markdown:
        write_measured(arguments.markdown, page, arguments.mark)


if __name__ == "__main__":
    main()

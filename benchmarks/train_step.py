"""Time and memory of a training step (forward, backward, optimizer) of vitlight's models beside timm's: the same network,
torch, batch and precision, in one run.

    python benchmarks/train_step.py --markdown docs/benchmarks/train_step.md --json OUT.json
    python benchmarks/train_step.py --device cuda --dtypes bf16 --modes eager compiled --image-size 224 --batch-size 256

Every contender of a case is a process of its own that waits until it is asked for steps. They are asked in turn, in an order
that moves on by one place a round, so that what slows the machine for a while slows all of them; ratios are taken within a
round, and medians over the rounds. benchmarks/README.md says what is compared and what is fair about it.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import busy_seconds
from pages import cpu_name, write_measured
from train_step_tables import render

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """One network in both libraries. batch_size: on the CPU, at 128 px. overrides: what makes ours the network timm has."""

    arch: str
    timm: str
    batch_size: int
    drop_path_rate: float = 0.0
    like_timm: bool = False

    @property
    def title(self) -> str:
        return self.arch + (f", drop path {self.drop_path_rate}" if self.drop_path_rate else "")


CASES = (
    Case("vit_s16", "vit_small_patch16_224", 16),
    Case("vit_b16", "vit_base_patch16_224", 8),
    Case("vit_l16", "vit_large_patch16_224", 8, drop_path_rate=0.5),
    Case("coatnet_0", "coatnet_0_224", 16, like_timm=True),
    Case("coatnet_2", "coatnet_2_224", 8, like_timm=True),
    Case("coatnet_2", "coatnet_2_224", 8, drop_path_rate=0.5, like_timm=True),
    Case("resnet50", "resnet50", 16),
    Case("bit_r50x1", "resnetv2_50x1_bit", 16),
)


@dataclass(frozen=True)
class Contender:
    """How one process trains. memory_format: "auto" is vitlight's own choice. allocator: vitlight's setting of malloc."""

    title: str
    library: str
    memory_format: str
    fused: bool = True
    allocator: bool = False
    compiled: bool = False


DEFAULT = Contender("timm, as its script runs it", "timm", "contiguous", fused=False)
CONTIGUOUS = Contender("timm, fused AdamW", "timm", "contiguous")
CHANNELS_LAST = Contender("timm, fused AdamW, channels_last", "timm", "channels_last")
OURS = Contender("vitlight", "vitlight", "auto", allocator=True)


def eager_contenders(device: str) -> list[Contender]:
    """On a CPU also timm with the setting of malloc that `vitlight fit` makes, which is none of timm's own."""
    tuned = [CONTIGUOUS, CHANNELS_LAST]
    if device == "cpu":
        tuned += [replace(one, title=one.title + ", vitlight's malloc", allocator=True) for one in tuned]
    return [DEFAULT, *tuned, OURS]


def compiled_contenders(contenders: list[Contender], eager: dict[str, Any] | None) -> list[Contender]:
    """timm in the memory format that was the better one in the eager runs, where there were any, and vitlight."""
    timm = [one for one in contenders if one.library == "timm" and one.fused]
    if eager is not None:
        best = min(timm, key=lambda one: median(eager[one.title]["seconds"]))
        timm = [one for one in timm if one.memory_format == best.memory_format]
    return [replace(one, title=f"{one.title}, compiled", compiled=True) for one in [*timm, OURS]]


class Worker:
    """One contender's process."""

    def __init__(self, case: Case, contender: Contender, settings: dict[str, Any]) -> None:
        spec = json.dumps({"case": asdict(case), "contender": asdict(contender), **settings})
        self.process = subprocess.Popen(
            [sys.executable, HERE / "train_step_worker.py", spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender ended with {self.process.wait()}")
        return json.loads(line)

    def steps(self, number: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def cpu_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(
    case: Case, contenders: list[Contender], settings: dict[str, Any], rounds: int, seconds: float
) -> dict[str, Any]:
    """For each contender: seconds a step in each round, peak memory in MiB, loss after the same steps from the same data."""
    workers = {}
    for one in contenders:  # one after the other: building and compiling use all cores
        workers[one.title] = Worker(case, one, settings)
        workers[one.title].answer()
    results: dict[str, Any] = {title: {"seconds": []} for title in workers}
    step_seconds = {title: worker.steps(1)["seconds"] for title, worker in workers.items()}
    number = max(1, math.ceil(seconds / max(step_seconds.values())))
    pids = [worker.process.pid for worker in workers.values()]
    began, busy, own = time.perf_counter(), busy_seconds(), cpu_seconds(pids)
    titles = list(workers)
    for turn in range(rounds):
        for title in titles[turn % len(titles) :] + titles[: turn % len(titles)]:
            answer = workers[title].steps(number)
            results[title]["seconds"].append(answer["seconds"])
            results[title] |= {
                name: answer[name] for name in ("peak_mib", "num_params", "forward_macs") if name in answer
            }
    elapsed = time.perf_counter() - began
    others = max(0.0, (busy_seconds() - busy - cpu_seconds(pids) + own) / elapsed)
    for worker in workers.values():
        worker.close()
    assert len({results[title]["num_params"] for title in titles}) == 1, "not the same network"
    return {"contenders": results, "steps_a_round": number, "others_busy": others}


def join(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both runs' entries in the order of CASES. Only runs of one machine and as many rounds can stand in one table."""
    for key in ("machine", "rounds"):
        if one[key] != other[key]:
            raise SystemExit(f"{key} differs: {one[key]} and {other[key]}")
    titles = [case.title for case in CASES]
    measured = sorted(one["measured"] + other["measured"], key=lambda entry: titles.index(entry["title"]))
    return one | {"measured": measured, "minutes": one["minutes"] + other["minutes"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", type=int, default=range(len(CASES)), help="by their number, from 0")
    parser.add_argument(
        "--contenders", nargs="+", type=int, help="eager ones by their number; each holds its own memory"
    )
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, help="default: each case's own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of the slowest contender, a round at least")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--join", type=Path, nargs="*", default=[], help="--json files of this machine's other runs")
    parser.add_argument("--markdown", type=Path, help="a page whose part between the marks is replaced")
    arguments = parser.parse_args()
    began = time.perf_counter()
    measured: list[dict[str, Any]] = []
    for number in arguments.cases:
        case = replace(CASES[number], batch_size=arguments.batch_size or CASES[number].batch_size)
        for dtype in arguments.dtypes:
            settings = {"dtype": dtype, "device": arguments.device, "image_size": arguments.image_size}
            eager: dict[str, Any] | None = None
            for mode in arguments.modes:
                contenders = eager_contenders(arguments.device)
                if arguments.contenders:
                    contenders = [contenders[i] for i in sorted(arguments.contenders)]
                if mode == "compiled":
                    contenders = compiled_contenders(contenders, eager)
                result = measure(case, contenders, settings, arguments.rounds, arguments.seconds)
                eager = result["contenders"] if mode == "eager" else eager
                measured.append(
                    {"title": case.title, "batch_size": case.batch_size, "mode": mode, **settings, **result}
                )
                medians = {title: median(one["seconds"]) for title, one in result["contenders"].items()}
                print(case.title, dtype, mode, {title: f"{1e3 * s:.0f} ms" for title, s in medians.items()}, flush=True)
    report = {
        "machine": {
            "device": torch.cuda.get_device_name() if arguments.device == "cuda" else cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "system": platform.platform(),
            "torch": torch.__version__,
        },
        "rounds": arguments.rounds,
        "minutes": (time.perf_counter() - began) / 60,
        "measured": measured,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    for path in arguments.join:
        report = join(json.loads(path.read_text()), report)
    page = render(report)
    print(page)
    if arguments.markdown:
        write_measured(arguments.markdown, page)


if __name__ == "__main__":
    main()

"""Estimated against measured peak memory of a training step: one process a case, second step on, AdamW fused.

    python benchmarks/memory.py [--device cuda] [--cases vit_s16:128:8 ...] [--markdown docs/benchmarks/memory.md]

A case is ARCH:IMAGE_SIZE:BATCH_SIZE; each runs in fp32 and bf16-mixed, with and without activation checkpointing.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from pages import write_measured
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from vitlight.cost.memory import estimate_memory
from vitlight.models import build_model, set_activation_checkpointing

CASES = {
    "cpu": ("vit_s16:224:8", "vit_b16:128:8", "coatnet_0:128:16", "resnet50:128:16", "bit_r50x1:128:16"),
    "cuda": (
        "vit_s16:224:256",
        "vit_b16:224:128",
        "coatnet_0:224:128",
        "coatnet_2:224:64",
        "resnet50:224:256",
        "bit_r50x1:224:128",
    ),
}
PRECISIONS = ("32", "bf16-mixed")
MIB = 2**20


@dataclass(frozen=True)
class Case:
    arch: str
    image_size: int
    batch_size: int
    precision: str
    activation_checkpointing: bool
    device: str


@dataclass(frozen=True)
class Measured:
    """Peak bytes: what tensors held, what the process took beyond its idle memory, and that."""

    tensors: int
    process: int
    idle: int


class Step:
    """A training step as the trainer runs it: forward, backward, optimizer, gradients dropped."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.model = build_model(case.arch, image_size=case.image_size).to(case.device).train()
        set_activation_checkpointing(self.model, case.activation_checkpointing)
        # Convolutional networks as they are trained; a patch embedding gains nothing from it.
        is_convolutional = any(isinstance(m, nn.Conv2d) and m.kernel_size != m.stride for m in self.model.modules())
        layout = torch.channels_last if is_convolutional else torch.contiguous_format
        self.model.to(memory_format=layout)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        shape = (case.batch_size, 3, case.image_size, case.image_size)
        self.images = torch.randn(shape, device=case.device).contiguous(memory_format=layout)
        self.labels = torch.zeros(case.batch_size, dtype=torch.long, device=case.device)

    def __call__(self) -> None:
        with torch.autocast(self.case.device, torch.bfloat16, enabled=self.case.precision == "bf16-mixed"):
            loss = F.cross_entropy(self.model(self.images).float(), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(case: Case) -> Measured:
    """To be called in a fresh process."""
    if case.device == "cuda":
        step = Step(case)
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return Measured(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), 0)
    Step(case)()  # loads what kernels load once: threads, compiled kernels, their caches
    idle = released_bytes()
    step = Step(case)
    step()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    step()
    process = status_bytes("VmHWM") - idle
    del step
    released_bytes()
    # From the model's making on: of a block from before, the profiler would not see the end.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = Step(case)
        step()
        with record_function("second step"):
            step()
    events = profiler.profiler.kineto_results.events()
    (second_step,) = (event.start_ns() for event in events if event.name() == "second step")
    current = highest = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        current += event.nbytes()
        if event.start_ns() >= second_step:
            highest = max(highest, current)
    return Measured(highest, process, idle)


def released_bytes() -> int:
    """Resident memory after everything that nobody holds is given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return status_bytes("VmRSS")


def status_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, field
    return int(found[1]) * 1024


def measure_apart(case: Case) -> Measured:
    # Large blocks go back to the system when freed, so that the process's high-water mark is that of what is held.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--measure", json.dumps(asdict(case))]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def table(rows: list[tuple[Case, int, str, Measured]]) -> str:
    lines = [
        "| arch | image [px] | batch | precision | checkpointing | estimate [MiB] | peak in "
        "| tensors [MiB] | process [MiB] | idle [MiB] | estimate / tensors | estimate / process |",
        "|---|---:|---:|---|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for case, estimate, phase, measured in rows:
        checkpointing = "yes" if case.activation_checkpointing else "no"
        cells = (
            case.arch,
            case.image_size,
            case.batch_size,
            case.precision,
            checkpointing,
            f"{estimate / MIB:.0f}",
            phase,
        )
        mebibytes = [f"{size / MIB:.0f}" for size in (measured.tensors, measured.process, measured.idle)]
        ratios = (f"{estimate / measured.tensors:.3f}", f"{estimate / measured.process:.3f}")
        lines.append(f"| {' | '.join(map(str, (*cells, *mebibytes, *ratios)))} |")
    for what in ("tensors", "process"):
        ratios_of = [estimate / getattr(measured, what) for _, estimate, _, measured in rows]
        lines += [
            "",
            f"estimate / {what}: median {median(ratios_of):.3f}, {min(ratios_of):.3f} to {max(ratios_of):.3f}",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="ARCH:IMAGE_SIZE:BATCH_SIZE")
    parser.add_argument("--markdown", type=Path, help="a page whose part between the marks is replaced")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(asdict(measure(Case(**json.loads(args.measure))))))
        return
    rows = []
    for name in args.cases or CASES[args.device]:
        arch, image_size, batch_size = name.split(":")
        for precision in PRECISIONS:
            for checkpointing in (False, True):
                case = Case(arch, int(image_size), int(batch_size), precision, checkpointing, args.device)
                estimate = estimate_memory(
                    arch,
                    case.image_size,
                    case.batch_size,
                    precision,
                    activation_checkpointing=checkpointing,
                    device_type=args.device,
                )
                measured = measure_apart(case)
                rows.append((case, estimate.peak_bytes, estimate.peak_phase, measured))
                print(
                    case,
                    f"{estimate.peak_bytes / measured.tensors:.3f} {estimate.peak_bytes / measured.process:.3f}",
                    flush=True,
                )
    where = (
        torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.processor() or platform.machine()} CPU"
    )
    text = f"{where}, torch {torch.__version__}, {torch.get_num_threads()} threads\n\n{table(rows)}"
    print(text)
    if args.markdown:
        write_measured(args.markdown, text)


if __name__ == "__main__":
    main()

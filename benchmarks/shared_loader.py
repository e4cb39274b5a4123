"""Images per second of cells that share a loader, beside as many loaders of their own: the same batches, the same workers.

    python benchmarks/shared_loader.py --data DIR --markdown docs/sweeps.md --json OUT.json

Each cell is a process that takes its training batches as `vitlight fit` does and copies the pixels once, as a transfer to a
device reads them; it does nothing else, so the loaders are what limits. With loaders of their own each cell has its part of
--workers decoding processes, with a shared one that has all of them. Both are measured in every round, in an order that
changes from round to round, and ratios are taken within a round. Before, each cell takes --check batches in both ways, and
all must be the same to the last bit. The images are photographs of 500 x 375 pixels, cropped to 224 (see `photographs`).
"""

import argparse
import gc
import hashlib
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from pages import cpu_name, write_measured
from photographs import load_case
from tables import spread

from vitlight.data.datamodule import ShardedImages
from vitlight.data.shared_process import LoaderProcess
from vitlight.training.record import code_commit, package_versions

WARMUP_SECONDS = 2.0
ENDLESS_STEPS = 10**6


@dataclass(frozen=True)
class Order:
    """What a cell is to do: hash so many batches, or take batches for so many seconds. address: of a shared loader."""

    address: str | None
    num_workers: int
    num_batches: int = 0
    seconds: float = 0.0


def training_loader(folder: str, batch_size: int, order: Order) -> Any:
    data = ShardedImages(
        train=folder,
        num_classes=100,
        image_size=224,
        global_batch_size=batch_size,
        num_workers=order.num_workers,
        index_dir=str(Path(folder) / "vitlight"),
        shared_loader=order.address,
    )
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, accumulate_grad_batches=1, num_nodes=1)
    data.prepare()
    data.num_steps = ENDLESS_STEPS
    return data.train_dataloader()


def cell(orders: Any, barrier: Any, folder: str, batch_size: int) -> None:
    """Does what it is told until it is told None; answers a digest, or images per second."""
    torch.set_num_threads(1)
    while (order := orders.recv()) is not None:
        batches = iter(training_loader(folder, batch_size, order))
        orders.send(digest(batches, order.num_batches) if order.num_batches else rate(batches, barrier, order.seconds))
        if order.address is not None:
            batches.close()
        del batches
        gc.collect()


def digest(batches: Any, num_batches: int) -> str:
    state = hashlib.blake2b()
    for batch in itertools.islice(batches, num_batches):
        for name in ("image", "label", "weight"):
            state.update(batch[name].contiguous().numpy())
    return state.hexdigest()


def rate(batches: Any, barrier: Any, seconds: float) -> float:
    sink = torch.empty_like(next(batches)["image"])
    began = time.perf_counter()
    while time.perf_counter() - began < WARMUP_SECONDS:
        sink.copy_(next(batches)["image"])
    barrier.wait()
    num_images, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        sink.copy_(next(batches)["image"])
        num_images += len(sink)
    barrier.wait()
    return num_images / taken


class Cells:
    """Processes that stay, so that a round pays for no imports."""

    def __init__(self, num_cells: int, folder: str, batch_size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._barrier = context.Barrier(num_cells)
        pipes = [context.Pipe() for _ in range(num_cells)]
        self._pipes = [ours for ours, _ in pipes]
        for _, theirs in pipes:
            context.Process(target=cell, args=(theirs, self._barrier, folder, batch_size)).start()

    def apart(self, num_workers: int, **what: Any) -> list[Any]:
        return self._all([Order(None, num_workers // len(self._pipes), **what) for _ in self._pipes])

    def together(self, num_workers: int, num_bytes: int, log: Path, **what: Any) -> list[Any]:
        with LoaderProcess(log, num_workers, num_bytes) as loader:
            names = [str(number) for number in range(len(self._pipes))]
            for name in names:
                loader.expect(name)
            return self._all([Order(f"{loader.address}/{name}", 0, **what) for name in names])

    def _all(self, orders: list[Order]) -> list[Any]:
        for pipe, order in zip(self._pipes, orders, strict=True):
            pipe.send(order)
        return [pipe.recv() for pipe in self._pipes]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)


def render(report: dict[str, Any]) -> str:
    machine, rounds = report["machine"], report["rounds"]
    apart, together = ([sum(one[name]) for one in rounds] for name in ("apart", "together"))
    ratios = [one / other for one, other in zip(together, apart, strict=True)]
    lines = [
        f"| {report['cells']} cells, {report['workers']} decoding processes in all | images/s, all cells | of each |",
        "|---|---|---|",
    ]
    for title, name in (("a loader each", "apart"), ("one loader", "together")):
        sums = spread([sum(one[name]) for one in rounds], "{:,.0f}".format)
        lines.append(f"| {title} | {sums} | {median(each for one in rounds for each in one[name]):,.0f} |")
    return "\n".join(
        [
            *lines,
            f"| one loader / a loader each | {spread(ratios, '{:.2f}'.format)} | |",
            "",
            f"Median (least to most) of {len(rounds)} rounds in turn, {report['seconds']:g} s each; batches of "
            f"{report['batch_size']} crops of 224 x 224 from JPEGs of 500 x 375; {report['gib']:g} GiB for batches; "
            f"{machine['cores']} cores, {machine['cpu']}, torch {machine['torch']}, commit {machine['commit']}. "
            f"{report['check']} batches of each cell were the same to the last bit in both ways.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="where the photographs are, or are made")
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4, help="decoding processes in all")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--check", type=int, default=40, help="batches to compare")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="a page whose part between the marks is replaced")
    arguments = parser.parse_args()
    case = load_case("500x375", arguments.data)
    num_bytes, rounds = int(arguments.gib * (1 << 30)), []
    with tempfile.TemporaryDirectory(prefix="vitlight-shared-") as name:
        log = Path(name) / "log"
        cells = Cells(arguments.cells, case.folder, arguments.batch_size)
        try:
            found = set(cells.apart(arguments.workers, num_batches=arguments.check))
            found |= set(cells.together(arguments.workers, num_bytes, log, num_batches=arguments.check))
            if len(found) != 1:
                raise SystemExit("the batches of a shared loader differ from those of the cells' own")
            for number in range(arguments.rounds):
                one = {}
                for way in ("apart", "together") if number % 2 == 0 else ("together", "apart"):
                    seconds = {"seconds": arguments.seconds}
                    if way == "apart":
                        one[way] = cells.apart(arguments.workers, **seconds)
                    else:
                        one[way] = cells.together(arguments.workers, num_bytes, log, **seconds)
                rounds.append(one)
                print(f"round {number + 1}: ", {way: f"{sum(rates):,.0f}" for way, rates in one.items()}, flush=True)
        finally:
            cells.close()
        print(log.read_text(), end="")
    machine = {"cores": len(os.sched_getaffinity(0)), "cpu": cpu_name(), "commit": code_commit(), **package_versions()}
    named = ("cells", "workers", "batch_size", "gib", "seconds", "check")
    report = {"machine": machine, **{name: getattr(arguments, name) for name in named}, "rounds": rounds}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    page = render(report)
    print(page)
    if arguments.markdown:
        write_measured(arguments.markdown, page, "shared loader")


if __name__ == "__main__":
    main()

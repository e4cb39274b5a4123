"""One contender of loop_overhead.py, as a rank of its own: `vitlight fit`, or the plainest PyTorch loop of the same work.

Both train the same architecture on the same shards through the same loader, or on one batch held in memory, and note the
clocks at the beginning of the first step after the warm-up and of the last one.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from forked import become_rank, rank_environment

__all__ = ["LoopCase", "fit_settings", "train"]

ROOT = Path(__file__).resolve().parents[1]
LEARNING_RATE, CLIP = 1e-3, 1.0  # base.yaml's


@dataclass(frozen=True)
class LoopCase:
    """held: train on one batch that stays in memory, so that nothing but the loop and the network takes time."""

    arch: str
    image_size: int
    batch_size: int
    held: bool
    num_ranks: int = 1

    @property
    def title(self) -> str:
        return f"{self.arch}, {self.image_size} px, batch {self.batch_size}"


def fit_settings(case: LoopCase, data: Path, root: Path, steps: int) -> list[str]:
    """The words after `vitlight`. Rows and checkpoints are as often as by default; one evaluation, at the end."""
    return [
        "fit",
        f"--config={ROOT / 'experiments' / 'base.yaml'}",
        f"--run.root={root}",
        "--run.num_evaluations=1",
        "--run.wandb=false",
        "--trainer.accelerator=cpu",
        f"--trainer.devices={case.num_ranks}",
        f"--trainer.strategy={'ddp' if case.num_ranks > 1 else 'auto'}",
        f"--model.arch={case.arch}",
        f"--model.duration.samples={steps * case.batch_size}",
        f"--data.train={data / 'train'}",
        f"--data.test={data / 'test'}",
        "--data.num_classes=10",
        f"--data.image_size={case.image_size}",
        f"--data.global_batch_size={case.batch_size}",
        "--data.num_workers=0",
    ]


class _Clock:
    """Wall and CPU seconds from the beginning of step `first` to that of step `last`, both from 0, written to a file."""

    def __init__(self, path: Path, first: int, last: int) -> None:
        self._path, self._first, self._last, self._step = path, first, last, 0

    def begin_step(self) -> None:
        if self._step == self._first:
            self._wall, self._cpu = time.perf_counter(), time.process_time()
        elif self._step == self._last:
            number = self._last - self._first
            wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
            self._path.write_text(json.dumps({"seconds": wall / number, "cpu_seconds": cpu / number}))
        self._step += 1


class _Held:
    """A loader's first batch, again and again."""

    def __init__(self, loader: Any) -> None:
        self._batch, self._length = next(iter(loader)), len(loader)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self._length):
            yield dict(self._batch)


def train(
    contender: str, case: LoopCase, arguments: list[str], folder: Path, rank: int, port: int, threads: int, warmup: int
) -> None:
    """In a forked process: train to the end of `arguments` and leave `folder`/clock-RANK.json."""
    log = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    become_rank(rank, rank_environment(rank, case.num_ranks, port))
    import torch

    torch.set_num_threads(threads)
    from vitlight.training.resolve import resolve_run

    steps = resolve_run(arguments).steps
    clock = _Clock(folder / f"clock-{rank}.json", warmup, steps - 1)
    (_fit if contender == "fit" else _bare)(case, arguments, clock, rank)


def _fit(case: LoopCase, arguments: list[str], clock: _Clock, rank: int) -> None:
    from vitlight.cli import main
    from vitlight.data.datamodule import ShardedImages
    from vitlight.training.classifier import ImageClassifier

    original, loader = ImageClassifier.on_train_batch_start, ShardedImages.train_dataloader

    def on_train_batch_start(self: Any, batch: Any, batch_idx: int) -> None:
        clock.begin_step()
        original(self, batch, batch_idx)

    ImageClassifier.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]
    if case.held:
        ShardedImages.train_dataloader = lambda self: _Held(loader(self))  # type: ignore[method-assign,assignment,return-value]
    code = main(arguments)
    if code:
        raise SystemExit(code)


def _bare(case: LoopCase, arguments: list[str], clock: _Clock, rank: int) -> None:
    import torch
    import torch.nn.functional as F
    from torch.nn.parallel import DistributedDataParallel

    from vitlight.models import build_model
    from vitlight.training.allocator import keep_freed_memory
    from vitlight.training.experiment import ExperimentCLI

    keep_freed_memory()
    cli = ExperimentCLI(arguments)
    data = cli.build_data()
    data.prepare()
    data.num_steps = int(cli.settings.model.duration.samples) // case.batch_size
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=case.num_ranks, global_rank=rank, num_nodes=1, accumulate_grad_batches=1, testing=False
    )
    if case.num_ranks > 1:
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    torch.manual_seed(0)
    network = build_model(case.arch, num_classes=10, image_size=case.image_size)
    model = DistributedDataParallel(network) if case.num_ranks > 1 else network
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, data.num_steps)
    model.train()
    loader = data.train_dataloader()
    for batch in _Held(loader) if case.held else loader:
        batch = data.on_after_batch_transfer(batch, 0)
        clock.begin_step()
        loss = F.cross_entropy(model(batch["image"]), batch["label"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    if case.num_ranks > 1:
        torch.distributed.destroy_process_group()

"""Kills `vitlight fit` while it writes checkpoints, over and over, and looks each time at what is left.

    python benchmarks/kill_while_saving.py --kills 100 --markdown docs/checkpoints.md

A small ViT saves every other step, each checkpoint padded so that writing it takes longer than the step after it, first in
the background and then in place. Each process is sent SIGKILL at a moment drawn at random while its second, third or fourth
checkpoint is under way, and the same command is started again. Ends with 1 unless after every kill a whole checkpoint is
found that can be read, says its own step, is not older than the one found after the kill before, and is at most one interval
older than the newest one begun; in place, moreover, at most one interval older than the last step.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: what forks must have no threads
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from forked import become_rank, preload
from pages import write_measured

__all__ = ["FELL", "WAYS", "KilledSave", "kill_runs"]

ROOT = Path(__file__).resolve().parents[1]
INTERVAL, STEPS, BATCH = 2, 400, 8  # optimizer steps between checkpoints, and of a run; images of a step
_WAIT_SECONDS = 120.0  # a process that takes longer to begin a checkpoint hangs
_POLL_SECONDS = 0.0005

Fell = Literal["writing, flushing, digesting", "digest written, not renamed", "between saves"]
Way = Literal["in the background", "in place"]
WAYS: tuple[Way, ...] = ("in the background", "in place")
FELL: tuple[Fell, ...] = ("writing, flushing, digesting", "digest written, not renamed", "between saves")


@dataclass(frozen=True)
class KilledSave:
    """What a kill met and left. way: whether steps went on while it saved. begun: the step of the newest checkpoint begun.
    found: of the newest whole one, 0 for none. lost_steps: how many steps with a row come after. fault: what is wrong."""

    way: Way
    fell: Fell
    begun: int
    found: int
    lost_steps: int
    fault: str | None


def fit_arguments(data: Path, root: Path, name: str, way: Way) -> list[str]:
    """The words after `vitlight`, of a run too long to end before it is killed."""
    return [
        "fit",
        f"--config={ROOT / 'experiments' / 'base.yaml'}",
        f"--run.root={root}",
        f"--run.name={name}",
        "--run.num_evaluations=1",
        "--run.log_every_steps=1",
        f"--run.checkpoint_every_steps={INTERVAL}",
        f"--run.checkpoint_async={str(way == 'in the background').lower()}",
        "--run.wandb=false",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--model.arch=vit_nano1",
        "--model.model_options={depth: 1, width: 16, mlp_dim: 32, num_heads: 2}",
        f"--model.duration.samples={STEPS * BATCH}",
        f"--data.train={data / 'train'}",
        f"--data.test={data / 'test'}",
        "--data.num_classes=4",
        "--data.image_size=28",
        f"--data.global_batch_size={BATCH}",
        "--data.val_fraction=0.2",
        "--data.num_workers=0",
    ]


def _fit(args: list[str], padding_mib: int, log: Path) -> None:
    """A forked child: the run, with more in each checkpoint."""
    import torch

    from vitlight.cli import main
    from vitlight.training.classifier import ImageClassifier

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    become_rank(0, {})
    padding, save = torch.arange(padding_mib * 2**18, dtype=torch.int32), ImageClassifier.on_save_checkpoint

    def save_with_padding(self: Any, checkpoint: dict[str, Any]) -> None:
        save(self, checkpoint)
        checkpoint["padding"] = padding

    ImageClassifier.on_save_checkpoint = save_with_padding  # type: ignore[method-assign]
    sys.exit(main(args))


def _step_of(path: Path) -> int:
    return int(path.name.lstrip(".").removeprefix("step-")[:9])


def _begun(checkpoints: Path) -> int:
    """The step of the newest checkpoint of which anything is there, 0 for none."""
    return max(
        (_step_of(path) for path in [*checkpoints.glob("step-*"), *checkpoints.glob(".step-*.ckpt.tmp")]), default=0
    )


def _being_written(checkpoints: Path, since: float) -> int | None:
    """The step of the checkpoint that a process started at `since` is writing."""
    for path in checkpoints.glob(".step-*.ckpt.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime >= since:  # not what the kill before left
                return _step_of(path)
    return None


def _kill_one(args: list[str], checkpoints: Path, padding_mib: int, log: Path, save: int, part: float) -> None:
    """Start the run, and kill it in its `save`-th checkpoint (at least the second), when `part` of the time has gone that
    the one before it took."""
    process = multiprocessing.get_context("fork").Process(target=_fit, args=(args, padding_mib, log))
    since, deadline = time.time(), time.monotonic() + _WAIT_SECONDS
    process.start()
    seconds = began = 0.0
    num_begun, writing = 0, None
    while num_begun < save:
        now, step = time.monotonic(), _being_written(checkpoints, since)
        if writing is not None and step != writing:
            seconds = now - began
        if step is not None and step != writing:
            num_begun, began = num_begun + 1, now
        writing = step
        if now > deadline or not process.is_alive():
            process.kill()
            raise RuntimeError(f"the run ended, or began no checkpoint in time:\n{log.read_text()[-2000:]}")
        time.sleep(_POLL_SECONDS)
    time.sleep(part * seconds)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"


def _look(way: Way, checkpoints: Path, metrics: Path, found_before: int) -> KilledSave:
    """What is left, before anything else touches it."""
    import torch

    from vitlight.training.checkpoint import newest_checkpoint

    begun = _begun(checkpoints)
    unfinished = {_step_of(path) for path in checkpoints.glob(".step-*.ckpt.tmp")}
    fell: Fell = "between saves"
    if unfinished:
        has_digest = (checkpoints / f"step-{max(unfinished):09d}.digest").exists()
        fell = "digest written, not renamed" if has_digest else "writing, flushing, digesting"
    newest = newest_checkpoint(checkpoints)
    found, path = newest if newest is not None else (0, None)
    lost = metrics.read_bytes().count(b'"event": "train"') - found
    fault = None
    if found < begun - INTERVAL:
        fault = f"the newest whole one is of step {found}, and {begun} was begun"
    elif way == "in place" and lost > INTERVAL:
        fault = f"the newest whole one is of step {found}, and {lost} steps followed it"
    elif found < found_before:
        fault = f"the newest whole one is of step {found}, and was of {found_before} before"
    elif path is not None and torch.load(path, weights_only=True)["vitlight"]["step"] != found:
        fault = f"{path} says another step"
    return KilledSave(way, fell, begun, found, lost, fault)


def kill_runs(data: Path, folder: Path, way: Way, num_kills: int, seed: int, padding_mib: int) -> list[KilledSave]:
    """Kill runs on the shards in `data`, a new one whenever one has come three quarters of its way."""
    preload()
    folder.mkdir(exist_ok=True)
    from vitlight.training.record import RunDirectory
    from vitlight.training.resolve import resolve_run

    rng, kills, num_runs, found = Random(seed), [], 0, STEPS
    while len(kills) < num_kills:
        if found > 0.75 * STEPS:
            num_runs, found = num_runs + 1, 0
            args = fit_arguments(data, folder, f"run-{num_runs}", way)
            run = RunDirectory(resolve_run(args).run_dir)
        log, save, part = folder / "log.txt", rng.randint(2, 4), rng.uniform(0, 1.3)
        _kill_one(args, run.checkpoints, padding_mib, log, save, part)
        kill = _look(way, run.checkpoints, run.metrics_path, found)
        kills.append(kill)
        found = kill.found
    return kills


def table(kills: list[KilledSave], padding_mib: int, seed: int) -> str:
    """Markdown."""
    import lightning
    import torch

    lines = ["| saving | the kill fell | kills | a whole checkpoint found | most steps lost |", "|---|---|---|---|---|"]
    for way, fell in itertools.product(WAYS, FELL):
        met = [kill for kill in kills if (kill.way, kill.fell) == (way, fell)]
        if met:
            good = sum(kill.fault is None for kill in met)
            lines.append(f"| {way} | {fell} | {len(met)} | {good} | {max(kill.lost_steps for kill in met)} |")
    lines.append("")
    for way in WAYS:
        behind = Counter((kill.begun - kill.found) // INTERVAL for kill in kills if kill.way == way)
        lines.append(
            f"{way.capitalize()}, the newest whole checkpoint was the newest one begun {behind[0]} times, and the one "
            f"before it {behind[1]} times."
        )
    lines += [
        f"{len(kills)} kills, {sum(kill.fault is not None for kill in kills)} faults. Checkpoints of {padding_mib} MiB "
        f"every {INTERVAL} steps; seed {seed}; torch {torch.__version__}, lightning {lightning.__version__}, Python "
        f"{platform.python_version()}, Linux {platform.release()}.",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="for each of the two ways to save")
    parser.add_argument("--padding-mib", type=int, default=20, help="added to each checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work, on the disk to be tried (default: a temporary one)")
    parser.add_argument("--markdown", type=Path, help="a page whose part between its two marks is replaced")
    arguments = parser.parse_args()
    preload()
    from kill_cases import write_data

    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        write_data(Path(name) / "data")
        kills = [
            kill
            for way in WAYS
            for kill in kill_runs(
                Path(name) / "data",
                Path(name) / way.replace(" ", "_"),
                way,
                arguments.kills,
                arguments.seed,
                arguments.padding_mib,
            )
        ]
    text = table(kills, arguments.padding_mib, arguments.seed)
    print(text)
    for number, kill in enumerate(kills):
        if kill.fault is not None:
            print(f"kill {number}: {kill.fault}", file=sys.stderr)
    if arguments.markdown is not None:
        write_measured(arguments.markdown, text, "kills")
    return int(any(kill.fault is not None for kill in kills))


if __name__ == "__main__":
    sys.exit(main())

"""How long a training step waits for a checkpoint: written in place, and from a copy in the background.

    python benchmarks/checkpoint_wait.py --markdown docs/checkpoints.md

The state is that of a real network and AdamW after a step, as a run saves it, on the CPU. In each round every way saves
once, in turn, after all earlier writing is over; the table gives median, least and most. "first" is a copy into fresh
memory, "again" one into the memory of the copy before. Lightning's plugins neither flush nor digest.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from pages import write_measured

from vitlight.models import build_model
from vitlight.training.checkpoint_io import CheckpointWriter

Way = Callable[[dict[str, Any], Path], float]


def state_of(arch: str) -> dict[str, Any]:
    """Weights and moments, as large as in a checkpoint of a run."""
    model = build_model(arch, num_classes=1000, image_size=224)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    return {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}


def _timed(save: Callable[[], None]) -> float:
    start = time.perf_counter()
    save()
    return time.perf_counter() - start


def _final(beside: Path) -> Path:
    return beside.with_name(beside.name.removeprefix(".").removesuffix(".tmp"))


def _writer(in_background: bool) -> CheckpointWriter:
    return CheckpointWriter(in_background, _final, lambda path: None)


def ways() -> dict[str, Way]:
    """Seconds until the caller may go on, of each way; all of them have finished writing when they return."""
    again = _writer(True)

    def ours(writer: CheckpointWriter, state: dict[str, Any], folder: Path) -> float:
        seconds = _timed(lambda: writer.save_checkpoint(state, folder / ".step-000000001.ckpt.tmp"))
        writer.wait()
        return seconds

    def lightning_async(state: dict[str, Any], folder: Path) -> float:
        plugin = AsyncCheckpointIO(TorchCheckpointIO())
        seconds = _timed(lambda: plugin.save_checkpoint(state, folder / "lightning.ckpt"))
        plugin.teardown()
        return seconds

    return {
        "in place": lambda state, folder: ours(_writer(False), state, folder),
        "in the background, first": lambda state, folder: ours(_writer(True), state, folder),
        "in the background, again": lambda state, folder: ours(again, state, folder),
        "Lightning's AsyncCheckpointIO": lightning_async,
        "Lightning, in place": lambda state, folder: _timed(
            lambda: TorchCheckpointIO().save_checkpoint(state, folder / "lightning.ckpt")
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=["vit_ti16", "vit_s16"])
    parser.add_argument("--rounds", type=int, default=7, help="counted after one that isn't")
    parser.add_argument(
        "--folder", type=Path, help="where to write, on the disk to be tried (default: a temporary one)"
    )
    parser.add_argument("--markdown", type=Path, help="a page whose part between its two marks is replaced")
    arguments = parser.parse_args()
    lines = ["| arch | checkpoint, MiB | way | a step waits, ms: median (least to most) |", "|---|---|---|---|"]
    for arch in arguments.archs:
        state = state_of(arch)
        all_ways = ways()
        seconds: dict[str, list[float]] = {name: [] for name in all_ways}
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            for round_ in range(arguments.rounds + 1):
                for way, save in all_ways.items():
                    waited = save(state, Path(name))
                    if round_:
                        seconds[way].append(1000 * waited)
            mib = (Path(name) / "step-000000001.ckpt").stat().st_size / 2**20
        for way, each in seconds.items():
            lines.append(
                f"| {arch} | {mib:,.0f} | {way} | {statistics.median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f}) |"
            )
    text = "\n".join(
        [
            *lines,
            "",
            f"n = {arguments.rounds} rounds; torch {torch.__version__} with {torch.get_num_threads()} threads, lightning "
            f"{lightning.__version__}, Python {platform.python_version()}, Linux {platform.release()}.",
        ]
    )
    print(text)
    if arguments.markdown is not None:
        write_measured(arguments.markdown, text, "waits")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A callback that notes which images each step really trained on, and lets a test stop the run at a step."""

import hashlib
import json
import os
import time
from pathlib import Path

import lightning.pytorch as pl

__all__ = ["SampleLedger", "read_samples"]


class SampleLedger(pl.Callback):
    """One line for each step, in a file of the process's own in `folder`: pid, rank, world, step and the images' digests.

    gates: {world size: step}; there a rank waits for the file `gate-STEP-WORLD`, or for a signal that stops the run.
    """

    def __init__(self, folder: str, gates: dict[int, int] | None = None) -> None:
        self.folder, self.gates = Path(folder), gates or {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step, world = trainer.global_step, trainer.world_size
        images, labels = batch["image"].contiguous().numpy(), batch["label"].tolist()
        digests = [
            hashlib.blake2b(image.tobytes() + bytes([label]), digest_size=8).hexdigest()
            for image, label in zip(images, labels, strict=True)
        ]
        line = {"pid": os.getpid(), "rank": trainer.global_rank, "world": world, "step": step, "images": digests}
        with (self.folder / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.gates.get(world) == step:
            stop = next(callback.stop for callback in trainer.callbacks if hasattr(callback, "stop"))
            while not (self.folder / f"gate-{step}-{world}").exists() and stop.signum is None:
                time.sleep(0.05)


def read_samples(folder: Path) -> list[dict]:
    """The lines of all processes; a last one that a kill tore is left out."""
    paths = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().split("\n")[:-1]]

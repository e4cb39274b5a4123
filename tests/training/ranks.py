"""Runs of `vitlight` on several ranks, and what of two runs has to be equal."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import fit_args as fit_args_fixture
from tests.training.zygote import Zygote, free_port, rank_environment
from vitlight.training.checkpoint_io import CheckpointReader
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run

__all__ = ["TOLERANCE", "Ranks", "assert_equal_training", "counts", "losses", "state_of"]

# The largest relative difference of a loss between two ways to sum the same float32 gradients, over 12 steps. The largest
# seen was 2e-7; clipping and Adam's division by the root of small squares may amplify it.
TOLERANCE = 2e-6


class Ranks:
    """Runs `vitlight` on a number of ranks, as torchrun would start them."""

    def __init__(self, zygote: Zygote, shards: Path, root: Path) -> None:
        self.zygote, self.shards, self.root = zygote, shards, root

    def args(self, name: str, *options: str) -> list[str]:
        return [*fit_args_fixture.__wrapped__(self.shards, self.root / name), "--trainer.devices=auto", *options]

    def begin(self, num_ranks: int, args: Sequence[str], log: Path) -> list[int]:
        """The process ids of ranks that write to `log`."""
        port = free_port()
        envs = [rank_environment(rank, num_ranks, port) if num_ranks > 1 else {} for rank in range(num_ranks)]
        return [self.zygote.start(args, log, env) for env in envs]

    def start(self, num_ranks: int, args: Sequence[str], expected: int = 0) -> str:
        """The output of all ranks; each has to end with the expected code."""
        log = self.root / f"log-{free_port()}"
        codes = [self.zygote.exit_code(pid) for pid in self.begin(num_ranks, args, log)]
        assert codes == [expected] * num_ranks, log.read_text()
        return log.read_text()

    def fit(self, name: str, num_ranks: int, *options: str) -> RunDirectory:
        args = self.args(name, *options)
        self.start(num_ranks, args)
        return RunDirectory(resolve_run(args).run_dir)

    def go_back(self, run: RunDirectory, name: str) -> RunDirectory:
        """A copy of a finished run as it was at its last but one checkpoint."""
        copy = RunDirectory(self.root.joinpath(name, *run.path.relative_to(self.root).parts[1:]))
        shutil.copytree(run.path, copy.path)
        copy.result_path.unlink()
        newest = max(copy.checkpoints.glob("*.ckpt"))
        shutil.rmtree(newest) if newest.is_dir() else newest.unlink()
        return copy


def state_of(run: RunDirectory) -> dict:
    """The newest checkpoint, as one process would have written it."""
    return CheckpointReader().load_checkpoint(max(run.checkpoints.glob("step-*.ckpt")), weights_only=True)


def losses(run: RunDirectory) -> dict[tuple[str, int], float]:
    return {(row["event"], row["step"]): row[f"{row['event']}/loss"] for row in run.rows()}


def counts(run: RunDirectory) -> list[tuple[str, int, int, int]]:
    return [
        (split, row["step"], row[f"{split}/top1_count"], row[f"{split}/num_images"])
        for row in run.rows()
        if (split := row["event"]) in ("val", "test")
    ]


def assert_equal_training(run: RunDirectory, expected: RunDirectory, tolerance: float = TOLERANCE) -> None:
    """Losses within the relative tolerance; where that is TOLERANCE counts, and always axes, exactly."""
    assert losses(run) == pytest.approx(losses(expected), rel=tolerance)
    if tolerance == TOLERANCE:
        assert counts(run) == counts(expected)
    axes = ["step", "data/samples_seen", "data/unique_samples_seen", "compute/train_flops"]
    assert [[row[axis] for axis in axes] for row in run.rows()] == [
        [row[axis] for axis in axes] for row in expected.rows()
    ]

"""How many images of an evaluation set a model gets right, exactly, and where a run keeps that."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from vitlight.data.evaluation_sets import OpenedSet
from vitlight.training.accuracy import target_ranks, wilson_interval
from vitlight.training.checkpoint import write_atomically

__all__ = ["SetScore", "SetScores"]


class SetScore(Metric):
    """Counts, in int64, of a set's images, of those whose highest logit is that of a right class, and of those with a right
    class among the five highest; of images whose logits aren't finite, too, which count as wrong.

    Where the set has `candidates` the logits of all other classes are left out. Of equal logits the lower class comes first.
    """

    full_state_update = False
    num_images: Tensor
    num_top1: Tensor
    num_top5: Tensor
    num_nonfinite: Tensor

    def __init__(self, opened: OpenedSet, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.opened = opened
        for name in ("num_images", "num_top1", "num_top5", "num_nonfinite"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.left_out: Tensor | None = None
        if opened.candidates is not None:
            self.left_out = torch.ones(num_classes, dtype=torch.bool)
            self.left_out[torch.from_numpy(opened.candidates)] = False

    def update(self, logits: Tensor, weight: Tensor, first: int) -> None:
        """logits (B, K) of the set's images first, first + 1, ...; weight (B,): 1, or 0 for padding behind the last."""
        places, classes = (torch.from_numpy(part) for part in self.opened.targets_of(first, len(logits)))
        is_right = torch.zeros(logits.shape, dtype=torch.bool)
        is_right[places, classes] = True
        is_right, counted = is_right.to(logits.device), weight > 0
        finite = logits.isfinite().all(1)
        if self.left_out is not None:
            logits = logits.masked_fill(self.left_out.to(logits.device), -torch.inf)
        highest = logits.masked_fill(~is_right, -torch.inf).amax(1, keepdim=True)
        class_numbers = torch.arange(logits.shape[1], device=logits.device)
        best = torch.where(is_right & (logits == highest), class_numbers, logits.shape[1]).amin(1)
        ranks = target_ranks(logits, best.clamp(max=logits.shape[1] - 1))
        counted_right = counted & finite & is_right.any(1)
        self.num_images += counted.sum()
        self.num_top1 += (counted_right & (ranks < 1)).sum()
        self.num_top5 += (counted_right & (ranks < 5)).sum()
        self.num_nonfinite += (counted & ~finite).sum()

    def compute(self) -> dict[str, Any]:
        """top1 and top5 in [0, 1], the 95 % interval of top1, the counts behind them, and what was evaluated."""
        count, right, opened = int(self.num_images), int(self.num_top1), self.opened
        assert count == len(opened.rows), "every image must be counted once"
        low, high = wilson_interval(right, count)
        return {
            "top1": right / count,
            "top5": int(self.num_top5) / count,
            "top1_low": low,
            "top1_high": high,
            "top1_count": right,
            "num_images": count,
            "num_left_out": opened.num_left_out,
            "num_candidates": None if opened.candidates is None else len(opened.candidates),
            "num_nonfinite": int(self.num_nonfinite),
            "digest": opened.digest,
        }


class SetScores:
    """The scores of all sets of a test; `results` holds them once it is over, a mapping a set."""

    def __init__(self) -> None:
        self._scores: dict[str, SetScore] = {}
        self.results: list[dict[str, Any]] = []

    def update(self, opened: OpenedSet, logits: Tensor, weight: Tensor, batch_idx: int, trainer: pl.Trainer) -> None:
        """With the rank's batch number `batch_idx`, of B rows: EvalPlan deals a set's batches out to the ranks in turn."""
        if opened.name not in self._scores:
            self._scores[opened.name] = SetScore(opened, logits.shape[1]).to(logits.device)
        place = batch_idx * trainer.world_size + trainer.global_rank
        self._scores[opened.name].update(logits, weight, place * len(logits))

    def close(self, step: int, image_size: int) -> None:
        """Of the weights after `step` optimizer steps, on images of that size."""
        at = {"step": step, "image_size": image_size}
        self.results = [{"set": name, **at, **score.compute()} for name, score in self._scores.items()]
        self._scores = {}

    def row(self) -> dict[str, float | int]:
        """Of the record: test/NAME_top1 and the like."""
        names = ("top1", "top5", "top1_count", "num_images")
        return {f"test/{score['set']}_{name}": score[name] for score in self.results for name in names}

    def keep(self, run: Path) -> None:
        """Write the results to evaluations.json of a run, in place of those of the same set, step and image size."""
        path = run / "evaluations.json"
        kept = {_place(score): score for score in (json.loads(path.read_bytes()) if path.exists() else [])}
        kept |= {_place(score): score for score in self.results}
        if self.results:
            write_atomically(path, json.dumps(list(kept.values()), indent=1, allow_nan=False) + "\n")

    def describe(self) -> list[str]:
        """A line for each set."""
        return [_describe(score) for score in self.results]


def _describe(score: Mapping[str, Any]) -> str:
    candidates = f", among {score['num_candidates']} classes" if score["num_candidates"] is not None else ""
    left_out = f"; {score['num_left_out']:,} images with no label are left out" if score["num_left_out"] else ""
    return (
        f"{score['set']}: top-1 {100 * score['top1']:.2f} % ({score['top1_count']:,} of {score['num_images']:,}; 95 % "
        f"interval {100 * score['top1_low']:.2f} to {100 * score['top1_high']:.2f}){candidates}{left_out}"
    )


def _place(score: Mapping[str, Any]) -> tuple[Any, ...]:
    return score["set"], score["step"], score["image_size"]

"""MixUp and CutMix: drawn in the loader's worker, applied on the device to normalised images and dense targets.

MixUp (Zhang et al. 2017, arXiv 1710.09412) blends an image and its target with a partner's, with weights lambda and
1 - lambda. CutMix (Yun et al. 2019, arXiv 1905.04899) puts a box of the partner's into the image, and weighs the targets
by the areas. lambda ~ Beta(alpha, alpha).

The partner of image i is its neighbour i ^ 1: pairs (0, 1), (2, 3), ... of a batch in random order. So pairs are as random
as those of a batch rolled by one (big_vision) or flipped (timm), and stay the same however an even number of images is
dealt to ranks and accumulated batches.

In the sources: big_vision's mixup is `mixup_alpha` with `per=batch`, one lambda for the global batch, and weighs an image
by max(lambda, 1 - lambda); in a symmetric pair that only says which of the two mixtures stands first. timm's modes `batch`
and `elem` are `per=batch` and `per=sample` here, with its `prob`, `switch_prob` and `correct_lam`; timm draws `batch` on
each rank, here it is one draw for all ranks.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitlight.data.augment import repeated_keys
from vitlight.data.hashing import uniforms
from vitlight.errors import InputError

__all__ = ["Mixing"]

# Salts of the hash.
_PER_SAMPLE, _PER_BATCH = 21, 22


@dataclass(frozen=True)
class Mixing:
    """MixUp and CutMix of a training batch.

    Args:
        mixup_alpha: Of MixUp's Beta distribution; 0 for no MixUp.
        cutmix_alpha: Of CutMix's Beta distribution; 0 for no CutMix.
        cutmix_probability: CutMix instead of MixUp, where both are on; null: 0.5.
        probability: Of mixing at all.
        per: Draw once for each `sample`, or once for the global `batch`.
        target_threshold: Classes with more than this share of a mixture are wholly its targets, and the others not at all:
            for sigmoid losses (Wightman et al. 2021, arXiv 2110.00476, who count every class that is present, 0; timm's
            bce-target-thresh). null: targets are the shares.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    cutmix_probability: float | None = None
    probability: float = 1.0
    per: Literal["sample", "batch"] = "batch"
    target_threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InputError(f"data.mixing.{name}={getattr(self, name)} is not a number from 0 on")
        for name in ("cutmix_probability", "probability"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise InputError(f"data.mixing.{name}={value} is not in [0, 1]")
        if self.target_threshold is not None and not 0.0 <= self.target_threshold < 0.5:
            raise InputError(
                f"data.mixing.target_threshold={self.target_threshold} is not in [0, 0.5): the larger share must be above it"
            )
        if self.per not in ("sample", "batch"):
            raise InputError(f"data.mixing.per={self.per} is not sample or batch")
        if self.cutmix_probability is not None and not (self.mixup_alpha and self.cutmix_alpha):
            raise InputError(
                f"data.mixing.cutmix_probability={self.cutmix_probability} chooses between MixUp and CutMix, but one is "
                f"off; set it to null, or both mixup_alpha and cutmix_alpha above 0"
            )
        is_default = (self.per, self.probability, self.target_threshold) == ("batch", 1.0, None)
        if not self.mixup_alpha and not self.cutmix_alpha and not is_default:
            warnings.warn(
                f"data.mixing.per={self.per}, probability={self.probability} and target_threshold={self.target_threshold} "
                f"are not read: mixup_alpha and cutmix_alpha are 0",
                stacklevel=3,
            )

    @property
    def enabled(self) -> bool:
        return self.probability > 0.0 and (self.mixup_alpha > 0.0 or self.cutmix_alpha > 0.0)

    def draws(
        self,
        seed: int,
        step: int,
        epochs: NDArray[np.int64],
        key_hash: NDArray[np.uint64],
        repeats: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """What `apply` needs, float32 (B, 4): lambda, 1 for CutMix or 0 for MixUp, and the box's centre as parts of height
        and width. lambda is 1 where nothing is mixed.

        per=batch: from the seed and the optimizer step, so all rows of all ranks are equal; per=sample: row i from the
        seed, epochs[i], key_hash[i] and repeats[i]. Only for an enabled mixing.
        """
        # SciPy takes 0.1 s to import, and few runs mix.
        from scipy.special import betaincinv

        assert self.enabled, "nothing is mixed"
        if self.per == "batch":
            numbers = uniforms(5, _PER_BATCH, seed, step)
        else:
            numbers = uniforms(5, _PER_SAMPLE, seed, epochs.astype(np.uint64), repeated_keys(key_hash, repeats))
        share = 0.5 if self.cutmix_probability is None else self.cutmix_probability
        if not (self.mixup_alpha and self.cutmix_alpha):
            share = 1.0 if self.cutmix_alpha else 0.0
        is_cutmix = numbers[:, 1] < share
        alpha = np.where(is_cutmix, self.cutmix_alpha, self.mixup_alpha)
        weight = np.where(numbers[:, 0] < self.probability, betaincinv(alpha, alpha, numbers[:, 2]), 1.0)
        drawn = np.stack([weight, is_cutmix, numbers[:, 3], numbers[:, 4]], axis=1).astype(np.float32)
        return np.broadcast_to(drawn, (len(key_hash), 4)).copy()

    def apply(self, images: Tensor, targets: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images (B, C, H, W) and targets (B, K), from those, both floating, and the draws (B, 4), all on one device.
        The memory format stays; nothing waits for the device. Raises InputError for an odd B."""
        if len(images) % 2:
            raise InputError(
                f"data.mixing pairs neighbours, but a micro-batch has {len(images)} images; make data.global_batch_size "
                f"an even multiple of ranks x accumulated batches"
            )
        weight, is_cutmix, row, column = draws.float().unbind(1)
        kept = weight
        pixel_weight = weight[:, None, None, None]
        if self.cutmix_alpha:
            height, width = images.shape[-2:]
            part = (1.0 - weight).sqrt()
            in_rows = _inside(height, part, row)
            in_columns = _inside(width, part, column)
            in_box = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
            kept_area = 1.0 - in_rows.sum(1) * in_columns.sum(1) / (height * width)
            kept = torch.where(is_cutmix > 0, kept_area, weight)
            pixel_weight = torch.where(is_cutmix[:, None, None, None] > 0, (~in_box).float(), pixel_weight)
        mixed_images = torch.lerp(_partners(images), images, pixel_weight.to(images.dtype))
        mixed_targets = torch.lerp(_partners(targets), targets, kept[:, None].to(targets.dtype))
        if self.target_threshold is not None:
            mixed_targets = (mixed_targets > self.target_threshold).to(targets.dtype)
        return mixed_images, mixed_targets


def _partners(rows: Tensor) -> Tensor:
    """Row i ^ 1 at place i."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _inside(size: int, part: Tensor, centre: Tensor) -> Tensor:
    """Which of `size` lines lie in a box of int(part * size) around pixel int(centre * size), cut off at the borders."""
    lines = torch.arange(size, device=part.device)
    length = (part * size).floor()[:, None]
    # A centre just below 1 may have become 1 in float32.
    middle = (centre * size).floor().clamp(max=size - 1)[:, None]
    return (lines >= middle - (length / 2).floor()) & (lines < middle + (length / 2).ceil())

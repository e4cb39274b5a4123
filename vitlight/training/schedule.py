"""Durations become steps here and nowhere else; learning rates are pure functions of samples seen and the horizon."""

import math
from dataclasses import dataclass

from vitlight.cost import train_flops
from vitlight.data.plan import count_steps
from vitlight.errors import InputError

__all__ = ["Duration", "WarmupCosine"]


@dataclass(frozen=True)
class Duration:
    """How long to train: exactly one of the first three.

    Args:
        epochs: Passes over the training subset.
        samples: Images drawn.
        train_flops: Compute spent, 3 x 2 x forward MACs x images drawn.
        min_samples: Small subsets are repeated until at least so many images have been drawn.
    """

    epochs: float | None = None
    samples: int | None = None
    train_flops: float | None = None
    min_samples: int = 0

    def num_steps(self, num_train_samples: int, global_batch_size: int, forward_macs: int) -> int:
        """Optimizer steps, at least 1: the duration in samples over the global batch size, rounded to nearest."""
        given = {name: getattr(self, name) for name in ("epochs", "samples", "train_flops")}
        chosen = {name: value for name, value in given.items() if value is not None}
        if len(chosen) != 1:
            raise InputError(
                f"model.duration has {', '.join(chosen) or 'nothing'} set; give one of epochs, samples, train_flops"
            )
        name, value = chosen.popitem()
        if not (value > 0 and math.isfinite(value)):
            raise InputError(f"model.duration.{name}={value} is not a positive number")
        if name == "epochs":
            samples = value * num_train_samples
        elif name == "samples":
            samples = value
        else:
            samples = value / train_flops(forward_macs, 1)
        return count_steps(max(samples, self.min_samples), global_batch_size)


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up from 0, then a half cosine to `final_fraction` of the peak (Loshchilov & Hutter 2016, 1608.03983).

    Args:
        warmup_samples: Length of the warm-up in images.
        warmup_fraction: The same in parts of the horizon; the shorter of the two that are given holds.
        final_fraction: Learning rate at the horizon, in parts of the peak.
    """

    warmup_samples: int | None = None
    warmup_fraction: float | None = None
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_samples is not None and self.warmup_samples < 0:
            raise InputError(f"model.schedule.warmup_samples={self.warmup_samples} is negative")
        if self.warmup_fraction is not None and not 0.0 <= self.warmup_fraction < 1.0:
            raise InputError(f"model.schedule.warmup_fraction={self.warmup_fraction} is not in [0, 1)")
        if not 0.0 <= self.final_fraction <= 1.0:
            raise InputError(f"model.schedule.final_fraction={self.final_fraction} is not in [0, 1]")

    def factor(self, samples_seen: float, horizon_samples: int) -> float:
        """Learning rate over its peak after `samples_seen` of `horizon_samples` images.

        A step is given the middle of its batch, so neither the first nor the last step has a rate of 0.
        """
        warmups = []
        if self.warmup_samples is not None:
            warmups.append(float(self.warmup_samples))
        if self.warmup_fraction is not None:
            warmups.append(self.warmup_fraction * horizon_samples)
        warmup = min(warmups, default=0.0)
        if samples_seen < warmup:
            return samples_seen / warmup
        progress = min(1.0, (samples_seen - warmup) / max(1.0, horizon_samples - warmup))
        return self.final_fraction + (1.0 - self.final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))

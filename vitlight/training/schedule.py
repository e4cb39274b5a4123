"""Durations become steps here and nowhere else; learning rates are pure functions of samples seen and the horizon."""

import functools
import itertools
import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from vitlight.cost import train_flops
from vitlight.data.plan import count_steps
from vitlight.errors import InputError

__all__ = ["Duration", "Schedule"]

Name = Literal["cosine", "linear", "constant", "rsqrt", "wsd", "steps"]
Shape = Literal["linear", "sqrt"]

# What a schedule reads besides its warm-up.
_COOLDOWN = ("cooldown_samples", "cooldown_fraction", "cooldown_shape", "final_fraction")
_READS: dict[str, tuple[str, ...]] = {
    "cosine": ("final_fraction",),
    "linear": ("final_fraction",),
    "constant": (),
    "rsqrt": ("timescale_samples", *_COOLDOWN),
    "wsd": _COOLDOWN,
    "steps": ("milestones", "gamma"),
}
_READ_BY_ALL = ("name", "warmup_samples", "warmup_fraction")


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

    @functools.lru_cache(maxsize=256)  # noqa: B019  frozen, and asked for several times a step
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
class Schedule:
    """The learning rate as a part of its peak: linear warm-up from 0, then what `name` says. A setting that the named
    schedule doesn't read is refused.

    Where two lengths are given for one thing, in images and as a part of the horizon, the shorter holds.

    Args:
        name: `cosine`, a half period of it (Loshchilov & Hutter 2016, 1608.03983); `linear`; `constant`; `rsqrt`, the
            reciprocal square root of Scaling ViT (Zhai et al. 2021, 2106.04560), with or without a cooldown; `wsd`, warm-up,
            stable, decay: constant until a cooldown (Haegele et al. 2024, 2405.18392); `steps`, cut at milestones.
        warmup_samples: Length of the warm-up in images.
        warmup_fraction: The same in parts of the horizon.
        final_fraction: Rate at the horizon in parts of the peak; for rsqrt, of what it would be without the cooldown.
        cooldown_samples: Length of the cooldown, which ends at the horizon, in images; wsd needs this or the next.
        cooldown_fraction: The same in parts of the horizon.
        cooldown_shape: `linear`, or `sqrt`: 1 - sqrt(progress), which falls faster at first (Haegele et al., section 3).
        timescale_samples: rsqrt is (1 + images since the warm-up / timescale_samples) ** -0.5, as in big_vision.
        milestones: Parts of the horizon, growing, at which `steps` multiplies the rate by `gamma`.
        gamma: See there.
    """

    name: Name = "cosine"
    warmup_samples: int | None = None
    warmup_fraction: float | None = None
    final_fraction: float = 0.0
    cooldown_samples: int | None = None
    cooldown_fraction: float | None = None
    cooldown_shape: Shape = "linear"
    timescale_samples: int | None = None
    milestones: list[float] | None = None
    gamma: float = 0.1

    def __post_init__(self) -> None:
        for name, options in (("name", Name), ("cooldown_shape", Shape)):
            if getattr(self, name) not in get_args(options):
                raise InputError(
                    f"model.schedule.{name}={getattr(self, name)} is not one of {', '.join(get_args(options))}"
                )
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default and field.name not in (*_READ_BY_ALL, *_READS[self.name]):
                raise InputError(
                    f"model.schedule.{field.name}={value} is not read by model.schedule.name={self.name}; set it to "
                    f"{'null' if field.default is None else field.default}, or choose another schedule"
                )
        self._check_numbers()
        cools = self.cooldown_samples is not None or self.cooldown_fraction is not None
        if self.name == "wsd" and not cools:
            raise InputError("model.schedule.name=wsd needs model.schedule.cooldown_samples or cooldown_fraction")
        if self.name == "rsqrt" and not cools and (self.final_fraction or self.cooldown_shape != "linear"):
            raise InputError(
                f"model.schedule.final_fraction={self.final_fraction} and cooldown_shape={self.cooldown_shape} are those "
                f"of a cooldown; set model.schedule.cooldown_samples or cooldown_fraction too, or leave them out"
            )
        if self.name == "rsqrt" and self.timescale_samples is None:
            raise InputError("model.schedule.name=rsqrt needs model.schedule.timescale_samples")
        if self.name == "steps" and not self.milestones:
            raise InputError("model.schedule.name=steps needs model.schedule.milestones")

    def _check_numbers(self) -> None:
        if self.warmup_samples is not None and self.warmup_samples < 0:
            raise InputError(f"model.schedule.warmup_samples={self.warmup_samples} is negative")
        for name in ("cooldown_samples", "timescale_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"model.schedule.{name}={value} is not at least 1")
        if self.warmup_fraction is not None and not 0.0 <= self.warmup_fraction < 1.0:
            raise InputError(f"model.schedule.warmup_fraction={self.warmup_fraction} is not in [0, 1)")
        if self.cooldown_fraction is not None and not 0.0 < self.cooldown_fraction <= 1.0:
            raise InputError(f"model.schedule.cooldown_fraction={self.cooldown_fraction} is not in (0, 1]")
        if not 0.0 <= self.final_fraction <= 1.0:
            raise InputError(f"model.schedule.final_fraction={self.final_fraction} is not in [0, 1]")
        if not 0.0 < self.gamma <= 1.0:
            raise InputError(f"model.schedule.gamma={self.gamma} is not in (0, 1]")
        places = [0.0, *(self.milestones or ()), 1.0]
        if any(not before < after for before, after in itertools.pairwise(places)):
            raise InputError(
                f"model.schedule.milestones={self.milestones} are not growing parts of 1, such as [0.3, 0.6]"
            )

    def warmup(self, horizon_samples: int) -> float:
        """Images of the warm-up."""
        return _shorter(self.warmup_samples, self.warmup_fraction, horizon_samples) or 0.0

    def unreached_peak(self, horizon_samples: int) -> str | None:
        """A line where the warm-up takes the whole horizon, so that the rate never reaches its peak; None elsewhere."""
        if self.warmup(horizon_samples) < horizon_samples:
            return None
        return (
            f"model.schedule.warmup_samples={self.warmup_samples} is not below the {horizon_samples} images of the run, "
            f"whose learning rate never reaches model.optimizer.lr; model.schedule.warmup_fraction bounds it"
        )

    def stable_until(self, horizon_samples: int) -> float | None:
        """The images after which the cooldown of wsd or rsqrt begins; None where there is none. Before, no rate depends on
        the horizon but through `warmup`, where `warmup_fraction` is what decides that."""
        return self._cooldown_start(horizon_samples) if self.name in ("wsd", "rsqrt") else None

    def _cooldown_start(self, horizon_samples: int) -> float | None:
        length = _shorter(self.cooldown_samples, self.cooldown_fraction, horizon_samples)
        return None if length is None else max(0.0, horizon_samples - length)

    def factor(self, samples_seen: float, horizon_samples: int) -> float:
        """Learning rate over its peak after `samples_seen` of `horizon_samples` images.

        A step is given the middle of its batch, so neither the first nor the last step has a rate of 0.
        """
        warmup = self.warmup(horizon_samples)
        rise = samples_seen / warmup if samples_seen < warmup else 1.0
        progress = min(1.0, max(0.0, samples_seen - warmup) / max(1.0, horizon_samples - warmup))
        if self.name in ("cosine", "linear"):
            part = 1.0 - progress if self.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
            return rise if samples_seen < warmup else self._toward_final(part)
        if self.name == "steps":
            passed = sum(samples_seen >= place * horizon_samples for place in self.milestones or ())
            return float(rise * self.gamma**passed)
        if self.name == "rsqrt":
            assert self.timescale_samples is not None
            rise *= (1.0 + max(0.0, samples_seen - warmup) / self.timescale_samples) ** -0.5
        return rise * self._cooldown(samples_seen, horizon_samples)

    def _toward_final(self, part: float) -> float:
        """`final_fraction` at 0, 1 at 1."""
        return self.final_fraction + (1.0 - self.final_fraction) * part

    def _cooldown(self, samples_seen: float, horizon_samples: int) -> float:
        start = self._cooldown_start(horizon_samples)
        if start is None or samples_seen <= start:
            return 1.0
        progress = min(1.0, (samples_seen - start) / (horizon_samples - start))
        return self._toward_final(1.0 - (progress if self.cooldown_shape == "linear" else math.sqrt(progress)))


def _shorter(samples: int | None, fraction: float | None, horizon_samples: int) -> float | None:
    lengths = [float(samples)] if samples is not None else []
    if fraction is not None:
        lengths.append(fraction * horizon_samples)
    return min(lengths, default=None)

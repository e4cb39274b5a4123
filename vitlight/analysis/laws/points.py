"""What a law is fitted to: runs as points, and the cells of runs that differ in their seed only."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitlight.errors import InputError

__all__ = ["AXES", "Cells", "Floats", "Points", "cells_of"]

Floats = NDArray[np.float64]
AXES = ("compute", "params", "samples", "unique_samples")


@dataclass(frozen=True, eq=False)
class Points:
    """Runs, one element each. An axis is absent where it is NaN throughout.

    `error` is 1 - accuracy or a loss, above 0. `compute` is in any one unit (training FLOPs, core-days), `samples` counts
    the images seen and `unique_samples` the different ones among them. Runs with equal `groups` differ in their seed
    only. Raises InputError for arrays of unequal length, an error or an axis that is not a positive finite number, an
    axis known for some of the runs only, and more unique samples than samples.
    """

    error: Floats
    compute: Floats
    params: Floats
    samples: Floats
    unique_samples: Floats
    groups: tuple[Hashable, ...]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        num_runs = len(self.labels)
        for name in ("error", *AXES):
            values = np.array(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, values)
            if values.shape != (num_runs,):
                raise InputError(
                    f"{name} has shape {values.shape}, and there are {num_runs} labels; give one value a run"
                )
            absent = np.isnan(values)
            if absent.all() and name != "error":
                continue
            wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
            if len(wrong):
                raise InputError(
                    f"{name}={values[wrong[0]]:g} of {self.labels[wrong[0]]} (and {len(wrong) - 1} more): a law needs "
                    f"positive finite numbers, and an axis for all of its runs or for none; leave these runs out"
                )
        if len(self.groups) != num_runs:
            raise InputError(f"groups has {len(self.groups)} elements, and there are {num_runs} labels; give one a run")
        if self.has("samples", "unique_samples") and (self.unique_samples > self.samples * (1 + 1e-9)).any():
            run = int(np.argmax(self.unique_samples / self.samples))
            raise InputError(
                f"unique_samples={self.unique_samples[run]:g} of {self.labels[run]} is more than its samples="
                f"{self.samples[run]:g}; unique_samples counts the different ones among the samples seen"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def has(self, *axes: str) -> bool:
        """Whether all of these axes are known."""
        return all(len(self) > 0 and not np.isnan(getattr(self, axis)).any() for axis in axes)

    def axis(self, name: str) -> Floats:
        """The values of an axis, (num_runs,)."""
        values: Floats = getattr(self, name)
        return values

    def take(self, runs: ArrayLike) -> "Points":
        """These runs alone, given as indices or as a mask."""
        indices = np.arange(len(self))[np.asarray(runs)]
        return Points(
            error=self.error[indices],
            compute=self.compute[indices],
            params=self.params[indices],
            samples=self.samples[indices],
            unique_samples=self.unique_samples[indices],
            groups=tuple(self.groups[index] for index in indices),
            labels=tuple(self.labels[index] for index in indices),
        )


@dataclass(frozen=True, eq=False)
class Cells:
    """Points with the seeds of one setting brought together, in the order of first appearance.

    `log_error` (n,) is the mean of log error over the seeds, `axes` (num_axes, n) the geometric mean (of equal numbers,
    unless the axis is a measured time), and `known` the same of all axes that the points have. `deviations` (num_runs in
    cells of several,) are the runs' log errors about their cell's mean, times sqrt(m / (m - 1)) for a cell of m runs, so
    that their mean square is the variance of a seed.
    """

    log_error: Floats
    axes: Floats
    known: dict[str, Floats]
    num_runs: NDArray[np.intp]
    deviations: Floats
    labels: tuple[str, ...]
    members: tuple[NDArray[np.intp], ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def seed_variance(self) -> float | None:
        """Of log error, pooled over all cells of several runs; None where there is no such cell."""
        degrees = int((self.num_runs - 1).sum())
        if degrees == 0:
            return None
        of_runs = np.concatenate([np.full(m, (m - 1) / m) for m in self.num_runs if m > 1])
        return float((self.deviations**2 * of_runs).sum() / degrees)


def cells_of(points: Points, axes: Sequence[str]) -> Cells:
    """The cells of `points`, with these of its axes."""
    indices: dict[Hashable, list[int]] = {}
    for index, group in enumerate(points.groups):
        indices.setdefault(group, []).append(index)
    members = tuple(np.array(runs, dtype=np.intp) for runs in indices.values())
    log_error = np.log(points.error)
    means = np.array([log_error[runs].mean() for runs in members])
    deviations = [
        (log_error[runs] - mean) * np.sqrt(len(runs) / (len(runs) - 1))
        for runs, mean in zip(members, means, strict=True)
        if len(runs) > 1
    ]
    known = {
        axis: np.array([_common(points.axis(axis)[runs]) for runs in members]) for axis in AXES if points.has(axis)
    }
    return Cells(
        log_error=means,
        axes=np.array([known[axis] for axis in axes]),
        known=known,
        num_runs=np.array([len(runs) for runs in members], dtype=np.intp),
        deviations=np.concatenate(deviations) if deviations else np.empty(0),
        labels=tuple(
            points.labels[runs[0]] + (f" (mean of {len(runs)} seeds)" if len(runs) > 1 else "") for runs in members
        ),
        members=members,
    )


def _common(values: Floats) -> float:
    return float(values[0] if (values == values[0]).all() else np.exp(np.log(values).mean()))

"""A fitted law: its parameters with intervals, and what it predicts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from vitlight.analysis.laws.bootstrap import run_deviations
from vitlight.analysis.laws.forms import Form
from vitlight.analysis.laws.intervals import percentiles
from vitlight.analysis.laws.points import Floats, Points
from vitlight.analysis.laws.solution import Solution
from vitlight.errors import InputError

__all__ = ["LawFit"]


@dataclass(frozen=True, eq=False)
class LawFit:
    """A form fitted to points.

    `objective` is the loss at the optimum, over cells and of log error; `residual_sd` the standard deviation of a single
    run's log error about the law (0.02: a run's error is off by 2 %). `intervals` hold each parameter with probability
    `level`; they are NaN where there are no draws and no profile. `draws` (num_bootstrap, num_parameters) are in the order
    of `form.parameters`. `warnings` are one line each.
    """

    form: Form
    parameters: dict[str, float]
    points: Points
    objective: float
    residual_sd: float
    intervals: dict[str, tuple[float, float]]
    level: float
    interval_method: str
    draws: Floats = field(repr=False)
    seed: int
    loss: str
    floor: float | None
    solution: Solution = field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def residuals(self) -> Floats:
        """log(measured / predicted) of each run, (num_runs,)."""
        measured: Floats = np.log(self.points.error)
        return measured - np.log(self.predict(**{axis: self.points.axis(axis) for axis in self.form.axes}))

    def predict(self, **axes: ArrayLike) -> Floats:
        """The law's error where the axes of the form have these values, in their broadcast shape.

        Raises InputError for an axis that is missing, unknown or not positive.
        """
        return self.form.error(np.array([list(self.parameters.values())]), axes)[0]

    def band(self, level: float | None = None, **axes: ArrayLike) -> tuple[Floats, Floats]:
        """Where the law itself lies, point by point, with probability `level` (that of the fit by default)."""
        return percentiles(self._curves(axes), self._checked(level))

    def prediction_band(self, level: float | None = None, **axes: ArrayLike) -> tuple[Floats, Floats]:
        """Where a new run of one seed lies, point by point, with probability `level`: the band, and the spread of runs."""
        curves = self._curves(axes)
        # The draws of the parameters began with the same seed: another stream keeps the two independent.
        random = np.random.default_rng([self.seed, 1])
        deviations = run_deviations(self.solution, len(curves), random)
        spread = np.exp(deviations).reshape(-1, *[1] * (curves.ndim - 1))
        return percentiles(curves * spread, self._checked(level))

    def _curves(self, axes: Mapping[str, ArrayLike]) -> Floats:
        if len(self.draws) == 0:
            raise InputError("num_bootstrap=0 leaves no draws for a band; fit with num_bootstrap=1000")
        return self.form.error(self.draws, axes)

    def _checked(self, level: float | None) -> float:
        level = self.level if level is None else level
        if not 0 < level < 1:
            raise InputError(f"level={level:g} must lie between 0 and 1, as 0.9 does")
        return level

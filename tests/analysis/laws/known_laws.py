"""Laws with known parameters, the settings at which they are measured, and noisy measurements of them."""

from dataclasses import dataclass, replace

import numpy as np

from vitlight.analysis.laws import FORMS, Points
from vitlight.analysis.laws.points import Floats

__all__ = ["DESIGNS", "REPLICATED", "UNUSUAL", "Design", "as_points", "compute_points", "grid_points"]


@dataclass(frozen=True)
class Design:
    """A law and the settings at which it is measured, `num_seeds` runs each. The log error of a setting is off by
    `cell_sd` (one for all, or one each), that of a run by `seed_sd` more. Noise is normal, or Student's with `tails`
    degrees of freedom."""

    form: str
    parameters: dict[str, float]
    axes: dict[str, Floats]
    cell_sd: float | Floats
    seed_sd: float = 0.0
    num_seeds: int = 1
    tails: float | None = None

    def points(self, random: np.random.Generator | None = None) -> Points:
        """Measured without noise, or with that of `random`."""
        errors = FORMS[self.form].error(np.array([list(self.parameters.values())]), self.axes)[0]
        num = len(errors)
        log_errors = np.repeat(np.log(errors), self.num_seeds)
        if random is not None:
            log_errors += np.repeat(self.cell_sd * self._noise(random, num), self.num_seeds)
            log_errors += self.seed_sd * self._noise(random, len(log_errors))
        known = {name: np.repeat(values, self.num_seeds) for name, values in self.axes.items()}
        cells = np.repeat(np.arange(num), self.num_seeds)
        return as_points(np.exp(log_errors), known, groups=tuple(cells.tolist()))

    def new_run(self, random: np.random.Generator) -> float:
        """By how much the log error of another run, of the last setting's kind, is off."""
        of_cell, of_seed = self._noise(random, 2)
        return float(np.ravel(self.cell_sd)[-1] * of_cell + self.seed_sd * of_seed)

    def _noise(self, random: np.random.Generator, num: int) -> Floats:
        if self.tails is None:
            return random.standard_normal(num)
        return random.standard_t(self.tails, num) / np.sqrt(self.tails / (self.tails - 2))


def as_points(error: Floats, axes: dict[str, Floats], groups: tuple[int, ...] | None = None) -> Points:
    absent = np.full(len(error), np.nan)
    return Points(
        error=error,
        **{name: axes.get(name, absent) for name in ("compute", "params", "samples", "unique_samples")},
        groups=groups or tuple(range(len(error))),
        labels=tuple(f"run{index}" for index in range(len(error))),
    )


def compute_points(error: Floats, compute: Floats) -> Points:
    return as_points(error, {"compute": compute})


def grid_points(error: Floats, params: Floats, samples: Floats) -> Points:
    return as_points(error, {"params": params, "samples": samples, "compute": 6 * params * samples})


def _grid(*axes: Floats) -> list[Floats]:
    return [values.ravel() for values in np.meshgrid(*axes, indexing="ij")]


_PARAMS, _SAMPLES = _grid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e7, 1e10, 6))
_SIZES, _UNIQUE, _EPOCHS = _grid(np.geomspace(1e6, 1e9, 4), np.geomspace(1e6, 1e8, 3), np.array([1.0, 3, 10, 40]))

DESIGNS = {
    "compute": Design(
        "compute", {"c": 0.1, "a": 1.1e6, "b": 0.35}, {"compute": np.geomspace(1e16, 1e21, 14)}, cell_sd=0.01
    ),
    "compute_shift": Design(
        "compute_shift",
        {"c": 0.12, "a": 0.63, "b": 0.32, "d": 0.52},
        {"compute": np.geomspace(0.02, 1e5, 24)},
        cell_sd=0.01,
    ),
    "size_data": Design(
        "size_data",
        {"e": 0.1, "A": 45.0, "B": 160.0, "alpha": 0.36, "beta": 0.38},
        {"params": _PARAMS, "samples": _SAMPLES},
        cell_sd=0.02,
    ),
    "size_data_repeated": Design(
        "size_data_repeated",
        {"e": 0.1, "A": 45.0, "B": 160.0, "alpha": 0.36, "beta": 0.38, "R": 8.0},
        {"params": _SIZES, "samples": _UNIQUE * _EPOCHS, "unique_samples": _UNIQUE},
        cell_sd=0.02,
    ),
}
REPLICATED = Design(
    "compute",
    {"c": 0.1, "a": 1.1e6, "b": 0.35},
    {"compute": np.geomspace(1e16, 1e21, 10)},
    cell_sd=0.01,
    seed_sd=0.01,
    num_seeds=3,
)
# Noise that is not what the intervals assume.
UNUSUAL = {
    "compute, heavy tails": replace(DESIGNS["compute"], tails=3.5),
    "compute, uneven noise": replace(DESIGNS["compute"], cell_sd=np.geomspace(0.005, 0.02, 14)),
}

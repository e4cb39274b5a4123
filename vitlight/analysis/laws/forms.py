"""The forms of a law: an error as a floor plus falling powers of what a run was given.

Each one is E = floor + sum over terms of amplitude * base^-exponent. The base of a term is an axis; that of the last
term may hold one more parameter, its `Shape`. A solver's parameters `theta` are (floor, amplitudes, exponents, shape) over
axes divided by their scales; `parameters` are the same in the user's units.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vitlight.analysis.laws.points import Floats
from vitlight.errors import InputError, did_you_mean

__all__ = ["FORMS", "Form", "Shape", "form_named"]

EXPONENT_BOUNDS = (0.005, 4.0)
REPEAT_BOUNDS = (0.05, 1e4)


@dataclass(frozen=True)
class Shape:
    """A parameter inside the base of the last term.

    `log_base` maps axes (num_axes, n) and values (b, 1) to the logarithm of the base and its derivative by the value, both
    (b, n). `to_public` and `to_internal` map a value and the scale of the last term's axis to the user's units and back.
    `grid` and `bounds` are those of the value over the given axes.
    """

    parameter: str
    log_base: Callable[[Floats, Floats], tuple[Floats, Floats]]
    to_public: Callable[[Floats, float], Floats]
    to_internal: Callable[[Floats, float], Floats]
    grid: Callable[[Floats, int], Floats]
    bounds: Callable[[Floats], tuple[float, float]]


@dataclass(frozen=True)
class Form:
    """One form. `axes` are the names of the axes it reads, the first `num_terms` of them the bases of its terms;
    `parameters` are floor, amplitudes, exponents and shape, in this order."""

    name: str
    formula: str
    axes: tuple[str, ...]
    parameters: tuple[str, ...]
    num_terms: int
    shape: Shape | None = None

    @property
    def floor(self) -> str:
        return self.parameters[0]

    @property
    def amplitudes(self) -> tuple[str, ...]:
        return self.parameters[1 : 1 + self.num_terms]

    @property
    def exponents(self) -> tuple[str, ...]:
        return self.parameters[1 + self.num_terms : 1 + 2 * self.num_terms]

    def evaluate(self, theta: Floats, axes: Floats) -> tuple[Floats, Floats]:
        """Errors (b, n) and their derivatives (b, n, num_parameters) for theta (b, num_parameters) and axes (num_axes, n) or
        (num_axes, b, n)."""
        terms = self.num_terms
        error = np.repeat(theta[:, :1], axes.shape[-1], axis=1)
        slopes = np.empty((*error.shape, theta.shape[1]))
        slopes[:, :, 0] = 1
        for k in range(terms):
            amplitude, exponent = theta[:, 1 + k, None], theta[:, 1 + terms + k, None]
            if self.shape is not None and k == terms - 1:
                log_base, slope = self.shape.log_base(axes, theta[:, -1:])
                power = np.exp(-exponent * log_base)
                slopes[:, :, -1] = -amplitude * exponent * power * slope
            else:
                log_base = np.log(axes[k])
                power = np.exp(-exponent * log_base)
            slopes[:, :, 1 + k] = power
            slopes[:, :, 1 + terms + k] = -amplitude * power * log_base
            error += amplitude * power
        return error, slopes

    def bounds(self, axes: Floats) -> tuple[Floats, Floats]:
        """Of theta: floor and amplitudes from 0, exponents in EXPONENT_BOUNDS."""
        terms = self.num_terms
        lower = [0.0] * (1 + terms) + [EXPONENT_BOUNDS[0]] * terms
        upper = [math.inf] * (1 + terms) + [EXPONENT_BOUNDS[1]] * terms
        if self.shape is not None:
            low, high = self.shape.bounds(axes)
            lower.append(low)
            upper.append(high)
        return np.array(lower), np.array(upper)

    def to_public(self, theta: Floats, scales: Floats) -> Floats:
        """theta (..., num_parameters) over axes divided by `scales` (num_terms,), in the units of the axes."""
        parameters, terms = theta.copy(), self.num_terms
        parameters[..., 1 : 1 + terms] *= scales ** theta[..., 1 + terms : 1 + 2 * terms]
        if self.shape is not None:
            parameters[..., -1] = self.shape.to_public(theta[..., -1], float(scales[-1]))
        return parameters

    def to_internal(self, parameters: Floats, scales: Floats) -> Floats:
        """The inverse of `to_public`."""
        theta, terms = parameters.copy(), self.num_terms
        theta[..., 1 : 1 + terms] *= scales ** -parameters[..., 1 + terms : 1 + 2 * terms]
        if self.shape is not None:
            theta[..., -1] = self.shape.to_internal(parameters[..., -1], float(scales[-1]))
        return theta

    def error(self, parameters: Floats, axes: Mapping[str, ArrayLike]) -> Floats:
        """Errors (b, *shape) for parameters (b, num_parameters) and axes that broadcast to one `shape`.

        Raises InputError for an axis that is missing or unknown, and for a value that is not positive.
        """
        for name in axes:
            if name not in self.axes:
                raise InputError(
                    f"{name}: the form {self.name} reads {', '.join(self.axes)}{did_you_mean(name, self.axes)}"
                )
        for name in self.axes:
            if name not in axes:
                raise InputError(
                    f"{name} is missing: the form {self.name} reads {', '.join(self.axes)}; give each of them"
                )
        values = np.broadcast_arrays(*(np.asarray(axes[name], dtype=np.float64) for name in self.axes))
        stacked = np.stack([value.ravel() for value in values])
        if not (stacked > 0).all():
            raise InputError(f"{' and '.join(self.axes)} of a prediction must be above 0, not {stacked.min():g}")
        ones = np.ones(self.num_terms)
        errors, _ = self.evaluate(self.to_internal(np.atleast_2d(parameters), ones), stacked)
        return errors.reshape(len(errors), *values[0].shape)


def _shifted(axes: Floats, shift: Floats) -> tuple[Floats, Floats]:
    base = axes[0] + shift
    return np.log(base), 1 / base


def _repeated(axes: Floats, log_repeats: Floats) -> tuple[Floats, Floats]:
    samples, unique = axes[1], axes[2]
    extra = np.maximum(samples / unique - 1, 0)
    repeats = np.exp(log_repeats)
    lost = -np.expm1(-extra / repeats)
    worth = 1 + repeats * lost
    return np.log(unique) + np.log(worth), (repeats * lost - extra * (1 - lost)) / worth


_SHIFT = Shape(
    parameter="d",
    log_base=_shifted,
    to_public=lambda value, scale: value * scale,
    to_internal=lambda value, scale: value / scale,
    grid=lambda axes, num: np.concatenate([[0.0], np.geomspace(0.05 * axes[0].min(), axes[0].max(), num - 1)]),
    bounds=lambda axes: (0.0, 10 * float(axes[0].max())),
)
_REPEATS = Shape(
    parameter="R",
    log_base=_repeated,
    to_public=lambda value, scale: np.exp(value),
    to_internal=lambda value, scale: np.log(value),
    grid=lambda axes, num: np.linspace(math.log(0.5), math.log(300), num),
    bounds=lambda axes: (math.log(REPEAT_BOUNDS[0]), math.log(REPEAT_BOUNDS[1])),
)

FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form("compute", "E = c + a C^-b", ("compute",), ("c", "a", "b"), 1),
        # Zhai et al. 2021 (arXiv 2106.04560), section 2: saturates at both ends.
        Form("compute_shift", "E = c + a (C + d)^-b", ("compute",), ("c", "a", "b", "d"), 1, _SHIFT),
        # Hoffmann et al. 2022 (arXiv 2203.15556), approach 3.
        Form(
            "size_data",
            "E = e + A / N^alpha + B / D^beta",
            ("params", "samples"),
            ("e", "A", "B", "alpha", "beta"),
            2,
        ),
        # Muennighoff et al. 2023 (arXiv 2305.16264), section 5. N stays as it is: their N' also needs the size that is
        # optimal for U, from an earlier law without repeats, and a second decay constant, which a sweep seldom identifies.
        Form(
            "size_data_repeated",
            "E = e + A / N^alpha + B / D'^beta, D' = U + U R (1 - exp(-(D / U - 1) / R))",
            ("params", "samples", "unique_samples"),
            ("e", "A", "B", "alpha", "beta", "R"),
            2,
            _REPEATS,
        ),
    )
}


def form_named(name: str) -> Form:
    """The form, or InputError."""
    if name not in FORMS:
        raise InputError(f"form={name!r} is none of {', '.join(FORMS)}{did_you_mean(name, FORMS)}")
    return FORMS[name]

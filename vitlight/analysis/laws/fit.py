"""`fit_law`: points and the name of a form in, a law with intervals and warnings out."""

from dataclasses import replace

import numpy as np

from vitlight.analysis.laws.bootstrap import draw_parameters
from vitlight.analysis.laws.checks import check
from vitlight.analysis.laws.forms import form_named
from vitlight.analysis.laws.intervals import percentiles, profile_intervals
from vitlight.analysis.laws.law_fit import LawFit
from vitlight.analysis.laws.points import Points
from vitlight.analysis.laws.solution import solve
from vitlight.errors import InputError

__all__ = ["INTERVAL_METHODS", "fit_law"]

INTERVAL_METHODS = ("bootstrap", "profile")


def fit_law(
    points: Points,
    form: str,
    *,
    num_bootstrap: int = 1000,
    level: float = 0.9,
    seed: int = 0,
    loss: str = "huber",
    floor: float | None = None,
    interval_method: str = "bootstrap",
) -> LawFit:
    """The law of this form that lies nearest to the points' log errors.

    `loss` is "huber", which outliers can't pull far, or "squares". `floor` fixes the form's floor (0: a pure power law)
    instead of fitting it. `seed` decides the draws: the same points, settings and seed give the same numbers. With
    `interval_method` "profile" the intervals need no draws, and num_bootstrap=0 saves their time; bands need them.
    Raises InputError for unknown settings, and for points that lack an axis of the form or are too few for it.
    """
    if not 0 < level < 1:
        raise InputError(f"level={level:g} must lie between 0 and 1, as 0.9 does")
    if num_bootstrap < 0:
        raise InputError(f"num_bootstrap={num_bootstrap} must be at least 0")
    if interval_method not in INTERVAL_METHODS:
        raise InputError(f"interval_method={interval_method!r} is none of {', '.join(INTERVAL_METHODS)}")
    law = form_named(form)
    solution = solve(points, law, loss, floor)
    draws = draw_parameters(solution, num_bootstrap, np.random.default_rng([seed, 0]))
    if interval_method == "profile":
        ends = profile_intervals(solution, level)
    else:
        ends = np.stack(percentiles(draws, level), axis=1)
    fit = LawFit(
        form=law,
        parameters=dict(zip(law.parameters, solution.parameters.tolist(), strict=True)),
        points=points,
        objective=solution.cost,
        residual_sd=solution.noise.run_sd,
        intervals={name: (float(low), float(high)) for name, (low, high) in zip(law.parameters, ends, strict=True)},
        level=level,
        interval_method=interval_method,
        draws=draws,
        seed=seed,
        loss=loss,
        floor=floor,
        solution=solution,
    )
    return replace(fit, warnings=check(points, fit))

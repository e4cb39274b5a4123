import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitlight.errors import InputError
from vitlight.training.schedule import Duration, Schedule


def test_durations_become_the_same_steps():
    macs, batch = 1000, 64
    assert Duration(epochs=3).num_steps(6400, batch, macs) == 300
    assert Duration(samples=19_200).num_steps(6400, batch, macs) == 300
    assert Duration(train_flops=6.0 * macs * 19_200).num_steps(6400, batch, macs) == 300
    assert Duration(epochs=0.001).num_steps(6400, batch, macs) == 1
    assert Duration(epochs=3, min_samples=64_000).num_steps(6400, batch, macs) == 1000
    assert Duration(epochs=3, min_samples=64).num_steps(6400, batch, macs) == 300


@pytest.mark.parametrize(
    ("duration", "message"),
    [
        (Duration(), "has nothing set"),
        (Duration(epochs=1, samples=2), "has epochs, samples set"),
        (Duration(epochs=0), r"model\.duration\.epochs=0 is not a positive number"),
        (Duration(train_flops=math.inf), r"model\.duration\.train_flops=inf"),
    ],
)
def test_impossible_durations_are_refused(duration, message):
    with pytest.raises(InputError, match=message):
        duration.num_steps(100, 10, 1)


# Each row: the schedule, its horizon, and the rates after so many images, worked out by hand.
FACTORS = {
    "cosine": (
        Schedule(warmup_samples=100, final_fraction=0.1),
        1100,
        {0: 0, 25: 0.25, 100: 1, 350: 0.1 + 0.9 * (2 + math.sqrt(2)) / 4, 600: 0.55, 1100: 0.1, 1200: 0.1},
    ),
    "linear": (
        Schedule("linear", warmup_samples=100, final_fraction=0.1),
        1100,
        {0: 0, 25: 0.25, 100: 1, 350: 0.775, 600: 0.55, 1000: 0.19, 1100: 0.1},
    ),
    "constant": (Schedule("constant"), 1100, {0: 1, 550: 1, 1100: 1}),
    "constant after a warm-up": (Schedule("constant", warmup_fraction=0.1), 1000, {25: 0.25, 100: 1, 1000: 1}),
    "rsqrt": (
        Schedule("rsqrt", warmup_samples=100, timescale_samples=100),
        1000,
        {50: 0.5, 100: 1, 400: 0.5, 900: 1 / 3, 1000: 10**-0.5},
    ),
    "rsqrt with cooldown": (
        Schedule("rsqrt", warmup_samples=100, timescale_samples=100, cooldown_samples=200),
        1000,
        {50: 0.5, 400: 0.5, 800: 8**-0.5, 900: 1 / 6, 1000: 0},
    ),
    "rsqrt with cooldown to a part": (
        Schedule("rsqrt", timescale_samples=100, cooldown_samples=200, final_fraction=0.4),
        900,
        {300: 0.5, 800: 0.7 / 3, 900: 0.4 * 10**-0.5},
    ),
    "wsd": (
        Schedule("wsd", warmup_samples=100, cooldown_fraction=0.2),
        1000,
        {50: 0.5, 100: 1, 800: 1, 850: 0.75, 950: 0.25, 1000: 0},
    ),
    "wsd, square root": (
        Schedule("wsd", cooldown_samples=400, cooldown_shape="sqrt", final_fraction=0.2),
        1000,
        {0: 1, 600: 1, 601: 0.96, 700: 0.6, 856: 0.36, 1000: 0.2},
    ),
    "wsd shorter than warm-up and cooldown": (
        Schedule("wsd", warmup_samples=80, cooldown_samples=80),
        100,
        {20: 0.25, 40: 0.375, 80: 0.25, 100: 0},
    ),
    "wsd all cooldown": (Schedule("wsd", cooldown_samples=500), 100, {0: 1, 50: 0.5, 100: 0}),
    "steps": (
        Schedule("steps", warmup_samples=10, milestones=[0.25, 0.5, 0.9], gamma=0.5),
        100,
        {5: 0.5, 24.5: 1, 25: 0.5, 49: 0.5, 50: 0.25, 89: 0.25, 90: 0.125, 100: 0.125},
    ),
}


@pytest.mark.parametrize("name", FACTORS)
def test_factors_are_those_worked_out_by_hand(name):
    schedule, horizon, expected = FACTORS[name]
    assert {at: schedule.factor(at, horizon) for at in expected} == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", FACTORS)
def test_rates_rise_once_then_fall_without_jumps_and_no_step_has_none(name):
    schedule, horizon, _ = FACTORS[name]
    middles = [schedule.factor(step + 0.5, horizon) for step in range(horizon)]
    assert min(middles) > 0.0
    assert max(middles) <= 1.0
    peak = middles.index(max(middles))
    assert middles[:peak] == sorted(middles[:peak])
    assert middles[peak:] == sorted(middles[peak:], reverse=True)
    if schedule.name != "steps" and schedule.cooldown_shape == "linear":
        # The steepest parts are a warm-up or a cooldown of 10 images and more.
        assert max(abs(after - before) for before, after in itertools.pairwise(middles)) < 1 / 10
    if schedule.cooldown_shape == "sqrt":
        assert schedule.factor(600 + 1e-12, horizon) == pytest.approx(1.0)


def test_the_shorter_of_two_lengths_holds():
    both = Schedule("wsd", warmup_samples=100, warmup_fraction=0.1, cooldown_samples=300, cooldown_fraction=0.2)
    assert [both.warmup(horizon) for horizon in (10_000, 1000, 100)] == [100, 100, 10]
    assert [both.stable_until(horizon) for horizon in (10_000, 1500, 1000, 100)] == [9700, 1200, 800, 80]
    assert both.factor(50, 10_000) == 0.5
    assert both.factor(5, 100) == 0.5
    assert Schedule().warmup(100) == 0.0
    assert Schedule().factor(0, 100) == 1.0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    warmup=st.integers(0, 500),
    cooldown=st.integers(1, 500),
    shape=st.sampled_from(["linear", "sqrt"]),
    horizons=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    part=st.floats(0, 1),
)
def test_before_its_cooldown_wsd_knows_no_horizon(warmup, cooldown, shape, horizons, part):
    schedule = Schedule("wsd", warmup_samples=warmup, cooldown_samples=cooldown, cooldown_shape=shape)
    first = min(schedule.stable_until(horizon) for horizon in horizons)
    factors = {schedule.factor(part * first, horizon) for horizon in horizons}
    assert len(factors) == 1
    assert schedule.factor(first + 1, min(horizons)) < schedule.factor(first + 1, 10_000)


def test_before_its_cooldown_rsqrt_knows_no_horizon_either():
    schedule = Schedule("rsqrt", warmup_samples=10, timescale_samples=9, cooldown_samples=20)
    assert (schedule.stable_until(100), schedule.stable_until(200)) == (80, 180)
    for samples in (5, 50, 79):
        assert schedule.factor(samples, 100) == schedule.factor(samples, 200)
    assert schedule.factor(90, 100) < schedule.factor(90, 200)


def test_others_have_no_stable_part():
    others = [Schedule(), Schedule("constant"), Schedule("rsqrt", timescale_samples=9)]
    assert [schedule.stable_until(100) for schedule in others] == [None] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_fraction": 1.0}, r"warmup_fraction=1\.0 is not in \[0, 1\)"),
        ({"warmup_samples": -1}, r"warmup_samples=-1 is negative"),
        ({"final_fraction": 1.5}, r"final_fraction=1\.5 is not in \[0, 1\]"),
        ({"name": "cosin"}, r"model\.schedule\.name=cosin is not one of cosine, linear"),
        ({"cooldown_samples": 5}, r"cooldown_samples=5 is not read by model\.schedule\.name=cosine; set it to null"),
        ({"name": "constant", "final_fraction": 0.1}, r"final_fraction=0\.1 is not read by .*constant; set it to 0\.0"),
        ({"name": "linear", "gamma": 0.5}, r"gamma=0\.5 is not read by model\.schedule\.name=linear"),
        ({"name": "steps", "milestones": [0.5], "timescale_samples": 3}, r"timescale_samples=3 is not read by .*steps"),
        ({"name": "wsd"}, r"name=wsd needs model\.schedule\.cooldown_samples or cooldown_fraction"),
        ({"name": "wsd", "cooldown_fraction": 0.0}, r"cooldown_fraction=0\.0 is not in \(0, 1\]"),
        ({"name": "wsd", "cooldown_samples": 0}, r"cooldown_samples=0 is not at least 1"),
        ({"name": "wsd", "cooldown_samples": 9, "cooldown_shape": "x"}, r"cooldown_shape=x is not one of linear, sqrt"),
        ({"name": "rsqrt"}, r"name=rsqrt needs model\.schedule\.timescale_samples"),
        (
            {"name": "rsqrt", "timescale_samples": 9, "final_fraction": 0.1},
            r"final_fraction=0\.1 .* of a cooldown; set",
        ),
        ({"name": "steps"}, r"name=steps needs model\.schedule\.milestones"),
        ({"name": "steps", "milestones": [0.6, 0.3]}, r"milestones=\[0\.6, 0\.3\] are not growing parts of 1"),
        ({"name": "steps", "milestones": [1.0]}, r"milestones=\[1\.0\] are not growing"),
        ({"name": "steps", "milestones": [0.5], "gamma": 0.0}, r"gamma=0\.0 is not in \(0, 1\]"),
    ],
)
def test_impossible_schedules_are_refused(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        Schedule(**settings)
    assert "\n" not in str(caught.value)


def test_a_warm_up_of_the_whole_horizon_is_told():
    long = Schedule(warmup_samples=1000)
    assert long.unreached_peak(1001) is None
    assert long.unreached_peak(1000) == (
        "model.schedule.warmup_samples=1000 is not below the 1000 images of the run, whose learning rate never reaches "
        "model.optimizer.lr; model.schedule.warmup_fraction bounds it"
    )
    assert Schedule(warmup_samples=1000, warmup_fraction=0.1).unreached_peak(100) is None
    assert Schedule().unreached_peak(1) is None

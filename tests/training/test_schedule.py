import math

import pytest

from vitlight.errors import InputError
from vitlight.training.schedule import Duration, WarmupCosine


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


def test_warmup_and_cosine_follow_the_formula():
    schedule = WarmupCosine(warmup_samples=100, final_fraction=0.1)
    assert schedule.factor(0, 1100) == 0.0
    assert schedule.factor(25, 1100) == 0.25
    assert schedule.factor(100, 1100) == 1.0
    assert schedule.factor(600, 1100) == pytest.approx(0.55)
    assert schedule.factor(1100, 1100) == pytest.approx(0.1)
    assert schedule.factor(350, 1100) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_the_shorter_warmup_holds():
    both = WarmupCosine(warmup_samples=100, warmup_fraction=0.1)
    assert both.factor(50, 10_000) == 0.5
    assert both.factor(5, 100) == 0.5
    assert WarmupCosine().factor(0, 100) == 1.0


def test_impossible_schedules_are_refused():
    with pytest.raises(InputError, match=r"warmup_fraction=1\.0"):
        WarmupCosine(warmup_fraction=1.0)
    with pytest.raises(InputError, match="warmup_samples=-1"):
        WarmupCosine(warmup_samples=-1)
    with pytest.raises(InputError, match=r"final_fraction=1\.5"):
        WarmupCosine(final_fraction=1.5)

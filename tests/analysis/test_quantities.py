"""How quantities are written."""

import pytest

from vitlight.analysis.quantities import format_commit, format_count, format_duration, format_si, format_top1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (5, "5"),
        (500, "500"),
        (999.6, "1k"),
        (1000, "1k"),
        (1_234_567, "1.23M"),
        (999_999, "1M"),
        (10**22, "10Z"),
    ],
)
def test_si(value: float, text: str) -> None:
    assert format_si(value) == text


def test_si_with_a_unit() -> None:
    assert format_si(235_900_000_000_000, "FLOP") == "236 TFLOP"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.21, "4.2 s"), (59.96, "1 min"), (185, "3 min 5 s"), (7620, "2 h 7 min"), (442_800, "5 d 3 h"), (86_400, "1 d")],
)
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_top1_bounds_a_spread_that_would_round_to_zero() -> None:
    assert format_top1(0.7154, 0.0042) == "71.5 ± 0.4"
    assert format_top1(0.7154, 0.0001) == "71.5 ± <0.1"
    assert format_top1(0.7154, 0.0) == "71.5 ± 0.0"
    assert format_top1(0.7154, None) == "71.5"


def test_counts_and_commits() -> None:
    assert [format_count(1, "run"), format_count(1200, "run"), format_count(3, "family")] == [
        "1 run",
        "1,200 runs",
        "3 families",
    ]
    assert format_commit("0123456789abcdef") == "0123456789ab"
    assert format_commit("0123456789ab-dirty") == "0123456789ab-dirty"

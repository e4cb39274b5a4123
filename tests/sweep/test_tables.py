"""How numbers are shown."""

import pytest

from vitlight.sweep import tables


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, ""),
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (999_400, "999 k"),
        (999_500, "1.00 M"),
        (21_966_208, "22.0 M"),
        (4_600_000_000, "4.60 G"),
        (1_016_000_000_000, "1.02 T"),
    ],
)
def test_counts_have_three_digits_and_a_prefix(number, text):
    assert tables.si_text(number) == text

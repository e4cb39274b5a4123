"""The text of a CSV's cell becomes a number, exactly: decimal digits all the way, so that 25.6 M parameters are
25,600,000 and 81.6 % is the double nearest to 0.816."""

import json
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from vitlight.analysis.columns import TABLE_COLUMNS, check_value

__all__ = ["column_is_percent", "is_missing", "parse_cell", "parse_decimal"]

_MISSING = {
    "",
    "-",
    "–",
    "—",
    "na",
    "n/a",
    "<na>",
    "nan",
    "null",
    "none",
    "inf",
    "-inf",
    "+inf",
    "infinity",
    "-infinity",
}
_NUMBER = re.compile(
    r"(?P<digits>[-+]?(?:\d{1,3}(?:[,_ \u00a0\u202f]\d{3})+|\d+)?(?:\.\d*)?(?:[eE][-+]?\d+)?)"
    r"\s*(?P<suffix>[kKMGBT]?)(?P<percent>%?)"
)
_SEPARATORS = re.compile(r"[,_ \u00a0\u202f]")
_SUFFIX_POWERS = {"": 0, "k": 3, "K": 3, "M": 6, "G": 9, "B": 9, "T": 12}
_FLAGS = {"true": True, "false": False, "1": True, "0": False}


def is_missing(text: str) -> bool:
    """Whether a cell of numbers holds none: empty, NA, NaN, null, None, a dash, or an infinity."""
    return text.strip().lower() in _MISSING


def parse_decimal(text: str) -> tuple[Decimal, bool]:
    """The number, and whether it has a percent sign (by which it is not divided).

    Thousands may be set apart by a comma, a space or `_`; k, M, G or B, and T multiply. ValueError: no number.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None or not re.search(r"\d", match["digits"].lower().partition("e")[0]):
        raise ValueError(f"{text!r} is no number" + ("; write a decimal point" if re.search(r"\d,\d", text) else ""))
    number = Decimal(_SEPARATORS.sub("", match["digits"]))
    return _times_power(number, _SUFFIX_POWERS[match["suffix"]]), bool(match["percent"])


def _times_power(number: Decimal, power: int) -> Decimal:
    """Exact: a product is rounded to 28 digits, and a count as it stands may be longer."""
    return number.scaleb(power) if power else number


def column_is_percent(cells: Iterable[str]) -> bool:
    """Whether a column of accuracies is in percent: one value above 1, or one percent sign, says so for all of them.

    ValueError: the column has values both above 1 and between 0 and 1, so that 0.8 may be 80 % or 0.8 %.
    """
    small, large = "", ""
    for text in cells:
        if is_missing(text):
            continue
        number, has_sign = parse_decimal(text)
        if has_sign or number > 1:
            large = large or text
        elif number > 0:
            small = small or text
    if large.endswith("%") or not (small and large):
        return bool(large)
    raise ValueError(
        f"it holds {small!r} and {large!r}, so it is not clear whether it counts percent; "
        "name it with _pct at its end if it does, or write fractions only"
    )


def parse_cell(column: str, text: str, power: int = 0, percent: bool = False) -> Any:
    """A cell's value in the words of `column`, a name of TABLE_COLUMNS; None where it holds none.

    Numbers are multiplied by 10 ** `power`; a count that is given in such a unit is rounded to a whole, one that isn't
    must be whole. Fractions are divided by 100 where `percent`. ValueError says what is wrong with it.
    """
    kind = TABLE_COLUMNS[column]
    if kind == "text":
        return None if text.strip() in ("", "<NA>", "nan", "NaN") else text
    if is_missing(text):
        return None
    if kind == "flag":
        if text.strip().lower() not in _FLAGS:
            raise ValueError(f"{text!r} is neither True nor False")
        return _FLAGS[text.strip().lower()]
    if kind in ("versions", "records"):
        return check_value(column, json.loads(text))
    number, _ = parse_decimal(text)
    if kind in ("count", "exact"):
        number = _times_power(number, power)
        if power:
            number = number.to_integral_value()
        if number != number.to_integral_value():
            raise ValueError(f"{text!r} is no whole number")
        return check_value(column, int(number))
    return check_value(column, float(number / 100 if percent else _times_power(number, power)))

"""Rates that the user gives: `--rate 2500images/s`, `--rate coatnet_*=90TFLOP/s`."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from vitlight.errors import InputError

if TYPE_CHECKING:
    from vitlight.sweep.plan import PlannedCell

__all__ = ["GivenRate", "parse_rate"]

_NUMBER = r"[0-9._]+(?:e[+-]?[0-9]+)?"
_RATE = re.compile(
    rf"(?:(?P<arch>[^=]+)=)?(?P<number>{_NUMBER})\s*(?P<prefix>[kMGTP]?)\s*(?P<unit>img/s|images/s|flop/?s)", re.I
)
_PREFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


@dataclass(frozen=True)
class GivenRate:
    """What one device trains in a second, in images or in nominal FLOPs, for architectures whose name fits the pattern."""

    pattern: str
    unit: Literal["images", "flops"]
    value: float

    def device_seconds(self, planned: PlannedCell) -> float | None:
        """Of the cell's own part; None where the rate isn't for its architecture."""
        if not fnmatchcase(planned.run.arch, self.pattern):
            return None
        flops_per_image = planned.run.train_flops / planned.run.horizon_samples
        work = planned.own_train_flops
        return work / self.value if self.unit == "flops" else work / flops_per_image / self.value


def parse_rate(text: str) -> GivenRate:
    """`[ARCH=]NUMBER UNIT`: ARCH may have wildcards, UNIT is images/s or FLOP/s with k, M, G, T or P before it."""
    match = _RATE.fullmatch(text.strip())
    value = math.nan
    if match is not None:
        with suppress(ValueError):
            value = float(match["number"]) * _PREFIXES[match["prefix"].upper()]
    if match is None or not 0 < value < math.inf:
        raise InputError(
            f"--rate {text} is no rate of one device; write 2500images/s, 90TFLOP/s, or ARCH=2500images/s, "
            "or the word measured"
        )
    unit: Literal["images", "flops"] = "images" if match["unit"].lower().startswith("im") else "flops"
    return GivenRate((match["arch"] or "*").strip(), unit, value)

"""Which cells of a sweep a budget pays for, how much shorter all of them would have to be, and when they would be done.

The rule: cells that differ in their seed alone stay together, and such groups are kept from the cheapest on, up to the first
that the budget doesn't pay for; no dearer one is kept. So what is left is a staircase: each size of model with the data sets
up to some size. Cells that are finished count too: the budget is the whole sweep's.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vitlight.errors import InputError

if TYPE_CHECKING:
    from vitlight.sweep.plan import PlannedCell

__all__ = ["Budget", "Kept", "keep_cheapest", "packed_seconds", "parse_budget", "seed_groups"]

SEED = "seed_everything"
_BUDGET = re.compile(r"([0-9._]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)", re.I)
_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True)
class Budget:
    """amount: nominal training FLOPs, or device-seconds."""

    amount: float
    unit: Literal["FLOPs", "device-seconds"]

    def text(self, amount: float | None = None) -> str:
        """The budget, or another amount of its unit: "3.000e+18 FLOPs", "24.0 device-hours"."""
        value = self.amount if amount is None else amount
        return f"{value:.3e} FLOPs" if self.unit == "FLOPs" else f"{value / 3600:,.2f} device-hours"


@dataclass(frozen=True)
class Kept:
    """The cells that the budget pays for and the others, both in grid order, and what the former cost in its unit."""

    kept: tuple[PlannedCell, ...]
    dropped: tuple[PlannedCell, ...]
    cost: float


def parse_budget(text: str) -> Budget:
    """`3e18` or `3e18FLOPs`, or device-hours as `24h`, `90m` or `2d`. InputError for anything else."""
    match = _BUDGET.fullmatch(text.strip())
    try:
        value = float(match[1]) if match is not None else math.nan
    except ValueError:
        value = math.nan
    unit = "" if match is None else match[2].lower()
    if not 0 < value < math.inf or unit not in ("", "flop", "flops", *_SECONDS):
        raise InputError(
            f"--budget {text} is no budget; write training FLOPs as 3e18, or device-hours as 24h (m for minutes, d for days)"
        )
    return Budget(value * _SECONDS[unit], "device-seconds") if unit in _SECONDS else Budget(value, "FLOPs")


def seed_groups(planned: Sequence[PlannedCell]) -> list[list[PlannedCell]]:
    """Cells that differ in `seed_everything` alone, in grid order."""
    groups: dict[str, list[PlannedCell]] = {}
    for item in planned:
        settings = {name: value for name, value in item.cell.settings.items() if name != SEED}
        groups.setdefault(repr(sorted(settings.items(), key=lambda pair: pair[0])), []).append(item)
    return list(groups.values())


def keep_cheapest(
    planned: Sequence[PlannedCell], budget: Budget, device_seconds: Callable[[PlannedCell], float | None]
) -> Kept:
    """What `budget` pays for, by the rule of this module.

    Groups come by the training FLOPs behind their results, so that a cell which begins on the trunk of a shorter one comes
    after it; what is paid is their own part. InputError where no group is paid for, and where a cost in device-hours isn't
    known.
    """

    def cost(group: Sequence[PlannedCell]) -> float:
        if budget.unit == "FLOPs":
            return float(sum(item.own_train_flops for item in group))
        seconds = [device_seconds(item) for item in group]
        if None in seconds:
            item = group[seconds.index(None)]
            raise InputError(
                f"a budget in device-hours needs the time of every cell, and that of cell {item.cell.index} "
                f"({item.cell.label}) is not known; give --rate or --calibrate"
            )
        return sum(each for each in seconds if each is not None)

    groups = sorted(
        seed_groups(planned), key=lambda group: (max(item.run.train_flops for item in group), group[0].cell.index)
    )
    costs = [cost(group) for group in groups]
    spent, num_kept = 0.0, 0
    for each in costs:
        if spent + each > budget.amount:
            break
        spent, num_kept = spent + each, num_kept + 1
    if not num_kept:
        cells = f"{len(groups[0])} cells" if len(groups[0]) > 1 else "cell"
        raise InputError(
            f"a budget of {budget.text()} pays for no cell: the cheapest {cells} ({groups[0][0].cell.label}) cost "
            f"{budget.text(costs[0])}; raise --budget, or use --budget-by scale"
        )
    kept = {item.cell.index for group in groups[:num_kept] for item in group}
    return Kept(
        tuple(item for item in planned if item.cell.index in kept),
        tuple(item for item in planned if item.cell.index not in kept),
        spent,
    )


def packed_seconds(jobs: Sequence[tuple[float, int]], num_devices: int) -> float:
    """Time until all jobs (wall seconds, devices of each) are done on `num_devices`, each started as soon as so many are
    free, the longest first (Graham 1969: with one device a job, at most 4/3 of the least possible). InputError where a job
    needs more devices."""
    free = [0.0] * num_devices
    for seconds, devices in sorted(jobs, key=lambda job: -job[0]):
        if devices > num_devices:
            raise InputError(f"a cell trains on {devices} devices, more than --devices {num_devices}")
        taken = [heapq.heappop(free) for _ in range(devices)]
        for _ in taken:
            heapq.heappush(free, max(taken) + seconds)
    return max(free)

"""What a sweep will take: of each cell its memory and its time, beside what it took where it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitlight.errors import InputError
from vitlight.sweep.budget import Budget, Kept, keep_cheapest
from vitlight.sweep.plan import PlannedCell
from vitlight.sweep.preflight import MemoryCheck, Need, num_devices
from vitlight.sweep.rates import Estimate, Rates, has_ended, measured_seconds

__all__ = ["CellForecast", "Forecast", "forecast", "total_cost"]


@dataclass(frozen=True)
class CellForecast:
    """need: memory of a device, None where it wasn't asked for or can't be told. estimate: None where nothing says.
    measured_seconds: device-seconds that it took, None unless it is done."""

    planned: PlannedCell
    num_devices: int
    need: Need | None
    estimate: Estimate | None
    measured_seconds: float | None
    has_ended: bool

    @property
    def device_seconds(self) -> float | None:
        """What it took, or else the estimate."""
        if self.measured_seconds is not None:
            return self.measured_seconds
        return None if self.estimate is None else self.estimate.device_seconds

    @property
    def ratio(self) -> float | None:
        """Estimate over what was measured."""
        if self.estimate is None or not self.measured_seconds:
            return None
        return self.estimate.device_seconds / self.measured_seconds


@dataclass(frozen=True)
class Forecast:
    """All cells in grid order, the memory of a device in bytes, and what a budget keeps."""

    cells: tuple[CellForecast, ...]
    memory_bytes: int | None
    kept: Kept | None

    @property
    def too_large(self) -> list[CellForecast]:
        """Those that need more memory than a device has."""
        return [cell for cell in self.cells if self.fits(cell) is False]

    def fits(self, cell: CellForecast) -> bool | None:
        if self.memory_bytes is None or cell.need is None:
            return None
        return cell.need.peak_bytes <= self.memory_bytes

    @property
    def left(self) -> list[CellForecast]:
        return [cell for cell in self.cells if not cell.has_ended]

    @property
    def unknown(self) -> list[CellForecast]:
        """Those that are left and of which nobody knows how long they take."""
        return [cell for cell in self.left if cell.estimate is None]


def forecast(
    planned: Sequence[PlannedCell], rates: Rates, memory_bytes: int | None = None, budget: Budget | None = None
) -> Forecast:
    """`memory_bytes`: of a device; None asks for no estimate of memory. InputError as from `keep_cheapest`."""
    memory = MemoryCheck()
    cells = tuple(
        CellForecast(
            planned=item,
            num_devices=num_devices(item),
            need=memory.need(item) if memory_bytes is not None else None,
            estimate=rates.estimate(item),
            measured_seconds=measured_seconds(item),
            has_ended=has_ended(item),
        )
        for item in planned
    )
    seconds = {cell.planned.cell.index: cell.device_seconds for cell in cells}
    kept = keep_cheapest(planned, budget, lambda item: seconds[item.cell.index]) if budget is not None else None
    return Forecast(cells, memory_bytes, kept)


def total_cost(planned: Sequence[PlannedCell], budget: Budget, rates: Rates) -> float:
    """Of all cells, in the budget's unit. InputError where one isn't known."""
    if budget.unit == "FLOPs":
        return float(sum(item.own_train_flops for item in planned))
    seconds = [rates.estimate(item) for item in planned]
    if None in seconds:
        item = planned[seconds.index(None)]
        raise InputError(
            f"a budget in device-hours needs the time of every cell, and that of cell {item.cell.index} "
            f"({item.cell.label}) is not known; give --rate or --calibrate"
        )
    return sum(each.device_seconds for each in seconds if each is not None)

"""What `vitlight sweep plan` shows: a row a cell, and a line a fact."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median

from vitlight.data.progress import duration_text
from vitlight.sweep.budget import packed_seconds
from vitlight.sweep.forecast import CellForecast, Forecast
from vitlight.sweep.plan import number_ranges
from vitlight.sweep.preflight import Need
from vitlight.sweep.tables import Column, Row, cost_columns, naming_columns, print_table, summed

__all__ = ["print_forecast", "rows_of"]

GIB = 2**30


def rows_of(forecast: Forecast) -> list[Row]:
    """One row a cell. What is unknown or wasn't asked for is None; device-seconds are of all devices of a cell together."""
    kept = None if forecast.kept is None else {item.cell.index for item in forecast.kept.kept}
    return [
        _row(cell, forecast.fits(cell), None if kept is None else cell.planned.cell.index in kept)
        for cell in forecast.cells
    ]


def print_forecast(forecast: Forecast, devices: int | None) -> None:
    """The table, and what follows from it. InputError where a cell needs more than `devices`."""
    lines = list(_lines(forecast, devices))
    planned = [cell.planned for cell in forecast.cells]
    columns = [*naming_columns(planned), *cost_columns(planned), summed("steps", "steps"), *_columns(forecast)]
    print_table(columns, rows_of(forecast), f"{len(planned)} cells")
    for line in lines:
        print(line)


def _row(cell: CellForecast, fits: bool | None, is_kept: bool | None) -> Row:
    planned, run = cell.planned, cell.planned.run
    return {
        "cell": planned.cell.index,
        "parameters": planned.cell.parameters,
        "args": list(planned.args),
        "run_id": run.run_id,
        "run_dir": str(run.run_dir),
        "arch": run.arch,
        "image_size": run.image_size,
        "num_train_samples": run.num_train_samples,
        "seed": run.seed,
        "params": run.params,
        "forward_macs": run.forward_macs,
        "train_flops": run.train_flops,
        "own_train_flops": planned.own_train_flops,
        "horizon_samples": run.horizon_samples,
        "steps": run.steps,
        "global_batch_size": run.global_batch_size,
        "num_devices": cell.num_devices,
        "batch_size_per_device": cell.need.batch_size if cell.need is not None else None,
        "peak_memory_bytes": cell.need.peak_bytes if cell.need is not None else None,
        "fits_memory": fits,
        "estimated_device_seconds": cell.estimate.device_seconds if cell.estimate is not None else None,
        "estimated_wall_seconds": cell.estimate.wall_seconds if cell.estimate is not None else None,
        "estimated_from": cell.estimate.source if cell.estimate is not None else None,
        "measured_device_seconds": cell.measured_seconds,
        "is_kept": is_kept,
    }


def _columns(forecast: Forecast) -> Iterator[Column]:
    """Those that have something to say."""
    if forecast.memory_bytes is not None:
        yield Column("peak GiB", _peak_text, numeric=True)
    if any(cell.estimate is not None for cell in forecast.cells):
        total = partial(_total_time, "estimated_device_seconds")
        yield Column("device time", lambda row: _time_text(row["estimated_device_seconds"]), total, numeric=True)
        yield Column("from", lambda row: row["estimated_from"] or "")
    if any(cell.measured_seconds is not None for cell in forecast.cells):
        total = partial(_total_time, "measured_device_seconds")
        yield Column("measured", lambda row: _time_text(row["measured_device_seconds"], ""), total, numeric=True)
    if forecast.kept is not None:
        yield Column("budget", lambda row: "keeps" if row["is_kept"] else "[dim]drops[/]")


def _peak_text(row: Row) -> str:
    if row["peak_memory_bytes"] is None:
        return "unknown"
    text = _gib(row["peak_memory_bytes"])
    return f"[red]{text}[/]" if row["fits_memory"] is False else text


def _gib(num_bytes: int) -> str:
    """Three digits, none of them lost before the point."""
    return f"{num_bytes / GIB:.3g}" if num_bytes < 1000 * GIB else f"{num_bytes / GIB:.0f}"


def _total_time(name: str, rows: list[Row]) -> str:
    """Of all cells; nothing where one isn't known."""
    seconds = [row[name] for row in rows]
    return "" if None in seconds else duration_text(sum(seconds))


def _time_text(seconds: float | None, unknown: str = "unknown") -> str:
    return unknown if seconds is None else duration_text(seconds)


def _lines(forecast: Forecast, devices: int | None) -> Iterator[str]:
    yield _time_line(forecast)
    if ratios := sorted(cell.ratio for cell in forecast.cells if cell.ratio is not None):
        yield (
            f"estimate over measured, of {len(ratios)} finished cells, each from the others: median {median(ratios):.2f}, "
            f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        )
    if devices is not None:
        yield _wall_line(forecast, devices)
    if forecast.memory_bytes is not None:
        yield _memory_line(forecast, forecast.memory_bytes)
    too_large: dict[tuple[str, Need], list[int]] = {}
    for cell in forecast.too_large:
        assert cell.need is not None
        too_large.setdefault((cell.planned.run.arch, cell.need), []).append(cell.planned.cell.index)
    for (arch, need), numbers in too_large.items():
        size = f"{_gib(need.peak_bytes)} GiB for {need.batch_size} images on a device"
        yield f"too large: {arch}, {size}: cells {number_ranges(numbers)}"


def _time_line(forecast: Forecast) -> str:
    """`device time: 3 h 10 min, 1 h 2 min of it left; longest cell 7 (...): 40 min`."""
    known = [(cell, seconds) for cell in forecast.cells if (seconds := cell.device_seconds) is not None]
    if not known:
        return "device time: unknown; --rate or --calibrate says, and so does a cell's first result"
    parts = [duration_text(sum(seconds for _, seconds in known))]
    if len(forecast.left) < len(forecast.cells):
        parts[0] += f", {duration_text(sum(seconds for cell, seconds in known if not cell.has_ended))} of it left"
    longest, seconds = max(known, key=lambda pair: pair[1])
    parts.append(f"longest cell {longest.planned.cell.index} ({longest.planned.cell.label}): {duration_text(seconds)}")
    if forecast.unknown:
        numbers = number_ranges([cell.planned.cell.index for cell in forecast.unknown])
        parts.append(f"without {len(forecast.unknown)} cells that nothing says of ({numbers})")
    return f"device time: {'; '.join(parts)}"


def _wall_line(forecast: Forecast, devices: int) -> str:
    """Of what is left; a cell that nothing is known of makes the whole unknown."""
    if forecast.unknown:
        return f"on {devices} devices: unknown, as cell {forecast.unknown[0].planned.cell.index} is"
    jobs = [(cell.estimate.wall_seconds, cell.num_devices) for cell in forecast.left if cell.estimate is not None]
    if not jobs:
        return f"on {devices} devices: nothing is left"
    return f"on {devices} devices: {duration_text(packed_seconds(jobs, devices))}, the longest cells first"


def _memory_line(forecast: Forecast, memory_bytes: int) -> str:
    told = [cell for cell in forecast.cells if cell.need is not None]
    fitting = len(told) - len(forecast.too_large)
    line = f"memory: {fitting} of {len(forecast.cells)} cells fit {_gib(memory_bytes)} GiB"
    if len(told) < len(forecast.cells):
        line += f", {len(forecast.cells) - len(told)} are unknown"
    if forecast.too_large:
        line += (
            "; for the others: more devices, trainer.accumulate_grad_batches, model.activation_checkpointing or a smaller "
            "data.global_batch_size"
        )
    return f"{line} (tensors alone: leave room for kernels and fragmentation)"

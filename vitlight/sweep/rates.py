"""How long cells take: from rates that are given, or from what cells of the same sweep have taken. Never from a guess.

A cell takes `start-up + training FLOPs / rate` of each device. The rate, in nominal training FLOP/s of a device, is that of
cells of the same network, precision and batch a device; else of the same arch at another size or batch; else, between a
smaller and a larger network of its family, on the line through both in logarithms. Beyond the sizes that were measured, and
in another precision, nothing is known, and nothing is said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError
from vitlight.json_lines import read_rows
from vitlight.sweep.preflight import num_devices
from vitlight.sweep.whole_files import replace_whole

if TYPE_CHECKING:
    from vitlight.sweep.given_rates import GivenRate
    from vitlight.sweep.plan import PlannedCell

__all__ = [
    "CALIBRATION",
    "Estimate",
    "Measurement",
    "Rates",
    "estimate_seconds",
    "has_ended",
    "known_rates",
    "measured_seconds",
    "measurement_of_rows",
    "network_of",
    "write_calibration",
]

CALIBRATION = "calibration.json"  # beside the runs, what `plan --calibrate` has measured


@dataclass(frozen=True)
class Network:
    """What decides how fast a device trains: `batch_size` images at once, one pass of which is `forward_macs` each."""

    arch: str
    family: str
    forward_macs: int
    precision: str
    batch_size: int


@dataclass(frozen=True)
class Measurement:
    """What training a network gave. Seconds of start-up and of evaluations are a run's; None where they aren't known."""

    network: Network
    flops: float  # nominal, of all devices together
    device_seconds: float  # that these took, without start-up
    startup_seconds: float | None
    evaluation_seconds: float | None
    source: str  # result, running or calibration
    run_id: str | None = None


@dataclass(frozen=True)
class Estimate:
    """device_seconds: of all devices together, evaluations apart, as `device_seconds` of result.json; wall_seconds: from the
    first step's start-up to the end, evaluations included; source: what both come from, for people."""

    device_seconds: float
    wall_seconds: float
    source: str


@dataclass(frozen=True)
class Rates:
    """What is known of how fast cells train; `given` stands before all that was measured."""

    measurements: tuple[Measurement, ...] = ()
    given: tuple[GivenRate, ...] = ()

    def estimate(self, planned: PlannedCell) -> Estimate | None:
        """None where nothing that was measured or given says. A finished cell's own result takes no part in its estimate."""
        devices, run = num_devices(planned), planned.run
        for rate in self.given:
            seconds = rate.device_seconds(planned)
            if seconds is not None:
                return Estimate(seconds, seconds / devices, "given")
        others = [each for each in self.measurements if each.run_id is None or each.run_id != run.run_id]
        found = _rate(network_of(planned), others)
        if found is None:
            return None
        flops_per_second, like, source = found
        startup = _median(each.startup_seconds for each in like) or _median(each.startup_seconds for each in others)
        seconds = planned.own_train_flops / flops_per_second + startup * devices
        evaluation = _median(each.evaluation_seconds for each in like)
        return Estimate(seconds, seconds / devices + evaluation, source)


def estimate_seconds(planned: PlannedCell, rates: Rates) -> float | None:
    """Device-seconds that the cell will take, all devices together; None where the rates don't say."""
    estimate = rates.estimate(planned)
    return None if estimate is None else estimate.device_seconds


def known_rates(planned: Sequence[PlannedCell]) -> Rates:
    """From the results of the sweep's finished cells, the records of running ones, and the directory's calibration."""
    found = [each for item in planned if (each := _measurement_of_cell(item)) is not None]
    directory = planned[0].run.run_dir.parent if planned else Path()
    return Rates((*found, *_read_calibration(directory / CALIBRATION)))


def network_of(planned: PlannedCell) -> Network:
    """What decides the cell's rate."""
    run, settings = planned.run, planned.run.settings
    accumulated = 1 if settings is None else settings.trainer.accumulate_grad_batches or 1
    return Network(
        run.arch,
        getattr(run, "family", None) or _family(run.arch),  # of a recorded run it is known without importing models
        run.forward_macs,
        "" if settings is None else str(settings.trainer.precision),
        run.global_batch_size // (num_devices(planned) * accumulated),
    )


def measured_seconds(planned: PlannedCell) -> float | None:
    """Device-seconds that the finished cell took itself; None where it isn't done, or its result doesn't say."""
    result = _result(planned.run.run_dir)
    seconds = result.get("own_device_seconds", result.get("device_seconds"))
    return seconds if result.get("status") == "done" and isinstance(seconds, float) else None


def has_ended(planned: PlannedCell) -> bool:
    """Whether nothing of the cell is left to do: it is done, diverged, or was ended early."""
    return _result(planned.run.run_dir).get("status") in ("done", "diverged", "stopped")


def measurement_of_rows(
    network: Network, rows: Sequence[dict[str, Any]], source: str, run_id: str | None
) -> Measurement | None:
    """From the first of a record's training rows, which start-up ends with, to the last; None of fewer than two."""
    steps = [row for row in rows if row.get("event") == "train"]
    if len(steps) < 2:
        return None
    first, last = steps[0], steps[-1]
    seconds = last["time/device_seconds"] - first["time/device_seconds"]
    flops = 6 * network.forward_macs * (last["data/samples_seen"] - first["data/samples_seen"])
    if seconds <= 0 or flops <= 0:
        return None
    return Measurement(network, flops, seconds, None, None, source, run_id)


def _measurement_of_cell(planned: PlannedCell) -> Measurement | None:
    run = planned.run
    result = _result(run.run_dir)
    if result.get("status") != "done":
        rows = [] if (run.run_dir / "origin.json").exists() else read_rows(run.run_dir / "metrics.jsonl")
        return measurement_of_rows(network_of(planned), rows, "running", run.run_id)
    flops = result.get("own_train_flops", result.get("train_flops"))
    seconds = measured_seconds(planned)
    if not flops or not seconds:
        return None
    ranks = result.get("num_ranks") or 1
    startup = (result.get("perf") or {}).get("startup_seconds") if result.get("origin") is None else None
    evaluation = None
    if result.get("origin") is None and result.get("wall_seconds"):
        evaluation = max(0.0, result["wall_seconds"] - result["device_seconds"] / ranks)
    training = seconds - (startup or 0.0) * ranks
    if training <= 0:  # one that was over with its first step
        startup, training = None, seconds
    return Measurement(network_of(planned), flops, training, startup, evaluation, "result", run.run_id)


def _rate(network: Network, measurements: Sequence[Measurement]) -> tuple[float, list[Measurement], str] | None:
    """FLOP/s of one device, what it comes from, and that in words."""
    alike = [each for each in measurements if each.network.precision == network.precision]
    if same := _best([each for each in alike if each.network == network]):
        return _pooled(same), same, _words(same)
    if same := [each for each in alike if each.network.arch == network.arch]:
        nearest = min(
            (abs(math.log(each.network.forward_macs / network.forward_macs)), each.network.batch_size) for each in same
        )
        like = _best(
            each
            for each in same
            if (abs(math.log(each.network.forward_macs / network.forward_macs)), each.network.batch_size) == nearest
        )
        return _pooled(like), like, f"{_words(like)}, at another size or batch"
    family = [each for each in alike if each.network.family == network.family]
    below = _nearest(family, network.forward_macs, max, lambda macs: macs <= network.forward_macs)
    above = _nearest(family, network.forward_macs, min, lambda macs: macs >= network.forward_macs)
    if not below or not above:
        return None
    low, high = below[0].network.forward_macs, above[0].network.forward_macs
    part = 0.5 if low == high else math.log(network.forward_macs / low) / math.log(high / low)
    rate = math.exp((1 - part) * math.log(_pooled(below)) + part * math.log(_pooled(above)))
    return rate, [*below, *above], f"between {below[0].network.arch} and {above[0].network.arch}"


def _nearest(
    family: Sequence[Measurement], macs: int, choose: Callable[[Iterable[int]], int], holds: Callable[[int], bool]
) -> list[Measurement]:
    sizes = [each.network.forward_macs for each in family if holds(each.network.forward_macs)]
    if not sizes:
        return []
    chosen = choose(sizes)
    return _best(each for each in family if each.network.forward_macs == chosen)


def _best(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Those of the surest source there is."""
    every = list(measurements)
    for source in ("result", "running", "calibration"):
        if found := [each for each in every if each.source == source]:
            return found
    return []


def _pooled(measurements: Sequence[Measurement]) -> float:
    return sum(each.flops for each in measurements) / sum(each.device_seconds for each in measurements)


def _words(measurements: Sequence[Measurement]) -> str:
    count = len(measurements)
    if measurements[0].source == "calibration":
        return "calibrated"
    kind = "running" if measurements[0].source == "running" else "finished"
    return f"{count} {kind} cell{'s' if count > 1 else ''}"


def _median(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return median(known) if known else 0.0


def _family(arch: str) -> str:
    from vitlight.models import arch_family

    with suppress(InputError):
        return arch_family(arch)
    return arch


def _result(run_dir: Path) -> dict[str, Any]:
    """The run's result.json; nothing where there is none that can be read, which `status` tells."""
    try:
        values = json.loads((run_dir / "result.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def write_calibration(path: Path, measurements: Sequence[Measurement]) -> None:
    """Put these beside what was calibrated before; of the same network, the new one stays."""
    kept = {each.network: each for each in (*_read_calibration(path), *measurements)}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(path, json.dumps([asdict(each) for each in kept.values()], indent=1).encode() + b"\n")


def _read_calibration(path: Path) -> list[Measurement]:
    try:
        rows = json.loads(path.read_text())
        return [Measurement(**{**row, "network": Network(**row["network"])}) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"{path} is no calibration that can be read; remove it and calibrate again") from None

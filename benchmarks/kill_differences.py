"""What differs between a run that was killed and one that was not."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from killed_fit import read_ledger

__all__ = ["TOLERANCE", "differences", "ledger_of", "weight_distance"]

# Times, rates, and what follows from the length of times in text; nothing else of a checkpoint, row or result may differ.
_VARYING_STATE = frozenset({"wall_seconds", "device_seconds", "own_device_seconds", "metrics_length", "ledger"})
_VARYING_ROW = ("time/", "perf/")
_VARYING_RESULT = (
    *("wall_", "device_", "own_device_", "images_per", "perf", "verdict", "started", "finished", "versions", "commit"),
)
# In another world: |difference| / |weights|, and of a row's numbers. Sums over a batch are rounded in another order.
TOLERANCE = 1e-3
Ledger = dict[int, list[str]]


def differences(whole: Path, killed: Path, whole_ledger: Path, killed_ledger: Path, same_world: bool) -> list[str]:
    """One line for each. whole, killed: run directories. same_world: bit for bit; else weights and losses within TOLERANCE,
    and every x axis and the ledger still exactly."""
    from vitlight.training.record import RunDirectory

    left, right = RunDirectory(whole), RunDirectory(killed)
    found = list(_different_ledgers(read_ledger(whole_ledger), read_ledger(killed_ledger)))
    found += _different_rows(left.rows(), right.rows(), same_world)
    found += _different_states(left.checkpoints, right.checkpoints, same_world)
    results = (left.read_result() or {}, right.read_result() or {})
    found += _different_results(*results, same_world)
    return found


def ledger_of(lines: list[dict[str, Any]]) -> Ledger:
    """For each step the digests of its images, sorted, as the last attempt that made the step had them."""
    last: dict[int, int] = {}
    for line in lines:
        if line["phase"] == "train":
            last[line["step"]] = max(last.get(line["step"], 0), line["attempt"])
    ledger: Ledger = {step: [] for step in sorted(last)}
    for line in lines:
        if line["phase"] == "train" and line["attempt"] == last[line["step"]]:
            ledger[line["step"]] += line["digests"]
    return {step: sorted(digests) for step, digests in ledger.items()}


def _different_ledgers(whole: list[dict[str, Any]], killed: list[dict[str, Any]]) -> Iterator[str]:
    wanted, had = ledger_of(whole), ledger_of(killed)
    for step in sorted(wanted.keys() | had.keys()):
        if wanted.get(step) != had.get(step):
            yield f"ledger of step {step}: {len(had.get(step, []))} images, not the same {len(wanted.get(step, []))}"
    for line in killed:  # also what was trained and then lost
        if line["phase"] == "train" and not set(line["digests"]) <= set(wanted.get(line["step"], ())):
            yield f"attempt {line['attempt']}, step {line['step']}: other images"


def _is_axis(name: str) -> bool:
    return name in ("event", "step") or name.startswith(("data/", "compute/", "model/"))


def _is_equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return type(left) is type(right) and bool(left == right)


def _is_near(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=TOLERANCE)
    return bool(left == right)


def _different_rows(whole: list[dict[str, Any]], killed: list[dict[str, Any]], same_world: bool) -> Iterator[str]:
    if len(whole) != len(killed):
        yield f"{len(killed)} rows, not {len(whole)}"
        return
    for number, (left, right) in enumerate(zip(whole, killed, strict=True)):
        for name in sorted(left.keys() | right.keys()):
            if name.startswith(_VARYING_ROW):
                continue
            one, other = left.get(name), right.get(name)
            exact = same_world or _is_axis(name)
            if not exact and name.partition("/")[2] in ("top1", "top5", "top1_count"):
                continue  # an image on the border between two classes may fall to the other
            if not (one == other if exact else _is_near(one, other)):
                yield f"row {number} (step {left['step']}, {left['event']}): {name} is {other}, not {one}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in _VARYING_STATE:
                yield from _leaves(item, f"{path}/{name}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}/{number}")
    else:
        yield path, value


def _last_state(folder: Path) -> tuple[int, dict[str, Any]]:
    from vitlight.training.checkpoint import newest_checkpoint

    found = newest_checkpoint(folder)
    if found is None:
        raise SystemExit(f"{folder} holds no whole checkpoint")
    return found[0], torch.load(found[1], weights_only=True)


def weight_distance(left: dict[str, Any], right: dict[str, Any]) -> float:
    """|left - right| / |left| over all the weights of two state_dicts."""
    names = [name for name, value in left.items() if value.is_floating_point()]
    difference = sum(float((left[name] - right[name]).double().square().sum()) for name in names)
    return math.sqrt(difference / sum(float(left[name].double().square().sum()) for name in names))


def _different_states(whole: Path, killed: Path, same_world: bool) -> Iterator[str]:
    (step, left), (other_step, right) = _last_state(whole), _last_state(killed)
    if step != other_step:
        yield f"the last checkpoint is of step {other_step}, not {step}"
        return
    if not same_world:
        distance = weight_distance(left["state_dict"], right["state_dict"])
        if not distance <= TOLERANCE:
            yield f"weights: |difference| / |weights| = {distance:.1e}, above {TOLERANCE:.0e}"
        return
    ours, theirs = dict(_leaves(left)), dict(_leaves(right))
    for path in sorted(ours.keys() | theirs.keys()):
        if not _is_equal(ours.get(path), theirs.get(path)):
            yield f"state{path} differs"


def _different_results(whole: dict[str, Any], killed: dict[str, Any], same_world: bool) -> Iterator[str]:
    for name in sorted(whole.keys() | killed.keys()):
        if name.startswith(_VARYING_RESULT):
            continue
        one, other = whole.get(name), killed.get(name)
        if not same_world and name in ("num_ranks", "top1", "top5", "top1_count", "val_top1", "val_top5"):
            continue
        if not (one == other if same_world else _is_near(one, other)):
            yield f"result.json: {name} is {json.dumps(other)}, not {json.dumps(one)}"

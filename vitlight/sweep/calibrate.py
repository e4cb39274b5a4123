"""A few steps of the smallest and the largest cell of each family, trained here, to know what a sweep will take."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vitlight.errors import InputError
from vitlight.json_lines import read_rows
from vitlight.sweep.outcomes import exit_reason
from vitlight.sweep.plan import PlannedCell
from vitlight.sweep.rates import Measurement, Rates, measurement_of_rows, network_of

__all__ = ["calibrate", "cells_to_calibrate"]

VITLIGHT = (sys.executable, "-m", "vitlight")
LONGEST_START_SECONDS = 900.0  # to the first step, with compiling and the index of large sets
LONGEST_STOP_SECONDS = 120.0
TICK_SECONDS = 0.1
_STOPPED_OR_DONE = (0, 75, -signal.SIGTERM)  # the last: asked to stop when it was about to exit
# A row for each step, and nothing that outlives it.
_OVERRIDES = (
    *("--run.name=calibration", "--run.wandb=false", "--run.log_every_steps=1", "--run.num_evaluations=1"),
    *("--run.share_trunk=false", "--run.extend=null", "--run.checkpoint_every_steps=1000000000"),
    *("--run.checkpoint_every_minutes=null", "--run.milestone_samples=[]", "--run.keep_best=false"),
)


def cells_to_calibrate(planned: Sequence[PlannedCell], rates: Rates) -> list[PlannedCell]:
    """Of each family and precision the cell with the smallest and the one with the largest network, but for those whose rate
    is known already."""
    chosen: dict[tuple[str, str, str], PlannedCell] = {}
    for item in sorted(planned, key=lambda item: (item.run.forward_macs, item.cell.index)):
        network = network_of(item)
        chosen.setdefault((network.family, network.precision, "smallest"), item)
        largest = chosen.get((network.family, network.precision, "largest"))
        if largest is None or largest.run.forward_macs < item.run.forward_macs:
            chosen[(network.family, network.precision, "largest")] = item
    known = {each.network for each in rates.measurements}
    unknown = {network_of(item): item for item in reversed(chosen.values()) if network_of(item) not in known}
    return sorted(unknown.values(), key=lambda item: item.cell.index)


def calibrate(
    planned: PlannedCell,
    seconds: float,
    say: Callable[[str], None] = lambda text: None,
    command: Sequence[str] = VITLIGHT,
) -> Measurement:
    """Train the cell for `seconds` after its first step, in a folder that is removed, and measure its rate.

    `command` stands for `vitlight`. InputError where it fails, or ends after its first step.
    """
    with tempfile.TemporaryDirectory(prefix="vitlight-calibration-") as folder:
        say(f"calibrating on cell {planned.cell.index} ({planned.cell.label}) for {seconds:g} s")
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *planned.args, f"--run.root={folder}", *_OVERRIDES],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        try:
            _train(process, Path(folder), seconds)
        finally:
            _kill(process)
        if process.returncode not in _STOPPED_OR_DONE:
            raise InputError(f"calibration of cell {planned.cell.index}: {exit_reason(process.returncode, log)}")
        rows = [row for path in Path(folder).glob("calibration/*/metrics.jsonl") for row in read_rows(path)]
        measured = measurement_of_rows(network_of(planned), rows, "calibration", None)
        if measured is None:
            raise InputError(
                f"calibration of cell {planned.cell.index} made {len(rows)} steps in {seconds:g} s, too few to measure; "
                "raise --calibrate, or give --rate"
            )
        return measured


def _train(process: subprocess.Popen[bytes], folder: Path, seconds: float) -> None:
    """Until the process ends, or `seconds` after its first row and with a second one, and then ask it to stop."""
    began, first = time.monotonic(), None
    while process.poll() is None:
        now = time.monotonic()
        num_rows = sum(len(read_rows(path)) for path in folder.glob("calibration/*/metrics.jsonl"))
        if num_rows and first is None:
            first = now
        if first is not None and now - first >= seconds and (num_rows > 1 or now - first >= LONGEST_START_SECONDS):
            break
        if first is None and now - began >= LONGEST_START_SECONDS:
            break
        time.sleep(TICK_SECONDS)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(LONGEST_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

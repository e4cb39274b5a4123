"""What the ledger costs a step, and how long a row takes to hand over while W&B hangs.

    python benchmarks/logging_cost.py

The ledger's part of a step is what `Record` does at every step beyond the loss: the profiler hooks of Lightning's loop (48
actions begin and end in a step of lightning 2.6.6 with vitlight's callbacks) and three changes of account. For the rows,
the real W&B is given a server on this machine that takes connections and never answers: in the process of `run.wandb`, and
as a `WandbLogger` of `trainer.logger` behind its thread. (W&B's hook at exit then complains on stderr.)
"""

import argparse
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.profilers import PassThroughProfiler

from vitlight.training.background_logger import BackgroundLogger, close_reports
from vitlight.training.fetch_clock import FetchClock
from vitlight.training.ledger import DATA_WAIT, OTHER, STEP, Ledger
from vitlight.training.record import RunDirectory
from vitlight.training.wandb import start_wandb

ACTIONS_OF_A_STEP = 48
STEP_SECONDS = 5e-3
FETCH = "[_TrainingEpochLoop].train_dataloader_next"
ROW = {f"group/name_{i}": i / 7 for i in range(16)}


class Listener:
    def __init__(self) -> None:
        self.ledger = Ledger()

    def fetch_begins(self) -> None:
        self.ledger.enter(DATA_WAIT)

    def fetch_ends(self) -> None:
        self.ledger.enter(STEP)

    def evaluation_begins(self) -> None:
        raise AssertionError("no evaluation is made here")


def ledger_seconds(steps: int = 2000, rounds: int = 15) -> float:
    """CPU seconds of a step's bookkeeping beyond those of Lightning's own profiler that does nothing; the median."""
    listener = Listener()
    clock, nothing = FetchClock(PassThroughProfiler(), listener), PassThroughProfiler()
    names = [FETCH, *(f"[Callback]Record.hook_{i}" for i in range(ACTIONS_OF_A_STEP - 1))]

    def spend(profiler: FetchClock | PassThroughProfiler, then: Callable[[int], int]) -> float:
        start = time.process_time()
        for _ in range(steps):
            for name in names:
                profiler.start(name)
                profiler.stop(name)
            then(OTHER)
        return (time.process_time() - start) / steps

    return median(spend(clock, listener.ledger.enter) - spend(nothing, abs) for _ in range(rounds))


def row_seconds(finish_seconds: float, num_rows: int = 500) -> tuple[list[float], list[float], float]:
    """Seconds of each row, for W&B's own process and for a logger behind a thread, and of the end."""
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory() as folder:
        os.environ.update(WANDB_API_KEY="k" * 40, WANDB_BASE_URL=f"http://127.0.0.1:{server.getsockname()[1]}")
        os.environ.pop("WANDB_MODE", None)
        run = RunDirectory(Path(folder) / "run")
        run.create()
        projection = start_wandb(run, "abc", "name", "group", [], "project", {}, finish_seconds)
        assert projection is not None
        logger = BackgroundLogger(WandbLogger(save_dir=folder))
        told, logged = [], []
        for step in range(num_rows):
            run.append({"event": "train", "step": step, **ROW})
            stamps = [time.perf_counter()]
            projection.rows_written()
            stamps.append(time.perf_counter())
            logger.log_metrics(ROW, step)
            stamps.append(time.perf_counter())
            told.append(stamps[1] - stamps[0])
            logged.append(stamps[2] - stamps[1])
            time.sleep(0.02)
        start = time.perf_counter()
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            close_reports(projection, [logger], {}, 0, finish_seconds)
        return told, logged, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--finish-seconds", type=float, default=5.0, help="run.wandb_finish_seconds (default: 5)")
    arguments = parser.parse_args()
    ledger = ledger_seconds()
    told, logged, end = row_seconds(arguments.finish_seconds)
    print("| what | measured | bound |")
    print("|---|---|---|")
    print(f"| ledger, of a step of 5 ms | {1e6 * ledger:.1f} us, {ledger / STEP_SECONDS:.2%} | 1 % |")
    for name, seconds in (("`run.wandb`", told), ("a `WandbLogger` in `trainer.logger`", logged)):
        middle, most = 1e3 * median(seconds), 1e3 * max(seconds)
        print(f"| a row, {name}, median and most of {len(seconds)} | {middle:.2f} ms, {most:.2f} ms | 50 ms |")
    print(f"| the end, both hanging | {end:.1f} s | {arguments.finish_seconds:.0f} s and 2 s of grace |")


if __name__ == "__main__":
    main()

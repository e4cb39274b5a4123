"""A user's logger (`trainer.logger`) behind a queue and a thread: it can be slow, hang or raise, and no step waits."""

import contextlib
import os
import queue
import signal
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from vitlight.training.wandb import WandbProjection
from vitlight.training.wandb_process import children_of

__all__ = ["BackgroundLogger", "close_reports"]

_MAX_WAITING = 10_000  # calls; beyond these, rows are left out and counted


class _Deferred:
    """An object that the thread alone touches: a call of one of its methods, however deep, is put off and gives None."""

    def __init__(self, call: Callable[[Callable[[], object]], None], get: Callable[[], Any]) -> None:
        self._call, self._get = call, get

    def __getattr__(self, name: str) -> "_Deferred":
        return _Deferred(self._call, lambda: getattr(self._get(), name))

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self._call(lambda: self._get()(*args, **kwargs))


class BackgroundLogger(Logger):
    """Lightning's calls to `logger`, in their order, by a thread of its own. What it raises is one warning.

    The thread is a daemon: a process that ends does not wait for it. Calls of a callback to its `experiment` are put off
    too, and give None; what else it calls beyond the interface of Logger (`log_image`) waits for the logger.
    """

    def __init__(self, logger: Logger, max_waiting: int = _MAX_WAITING) -> None:
        super().__init__()
        self.logger = logger
        self.num_dropped, self._max_waiting = 0, max_waiting
        self._error: Exception | None = None
        self._warned = False
        self._calls: queue.Queue[Callable[[], object] | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str | None:
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        return self.logger.version

    @property
    def save_dir(self) -> str | None:
        return self.logger.save_dir

    @property
    def experiment(self) -> "_Deferred":
        """Lightning asks for it at the start, where a logger may call its server."""
        return _Deferred(self._call, lambda: self.logger.experiment)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        if name == "logger":  # not yet set: a copy being made
            raise AttributeError(name)
        return getattr(self.logger, name)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._call(lambda: self.logger.log_metrics(dict(metrics), step))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self._call(lambda: self.logger.log_hyperparams(params, *args, **kwargs))

    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        self._call(lambda: self.logger.log_graph(model, input_array))

    def save(self) -> None:
        self._call(self.logger.save)

    def finalize(self, status: str) -> None:
        self._call(lambda: self.logger.finalize(status))

    def _call(self, call: Callable[[], object]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="logger", daemon=True)
            self._thread.start()
        if self._calls.qsize() < self._max_waiting:
            self._calls.put(call)
        else:
            self.num_dropped += 1
        self._warn()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:
                self._error = self._error or error

    def _warn(self) -> None:
        if self._error is not None and not self._warned:
            self._warned = True
            rank_zero_warn(f"{type(self.logger).__name__} failed, metrics.jsonl has every row: {self._error}")

    def conclude(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """The last call: the result, and of W&B the end of its run."""

        def end() -> None:
            if isinstance(self.logger, WandbLogger):
                self.logger.experiment.summary.update(
                    {name: value for name, value in summary.items() if value is not None}
                )
                self.logger.experiment.finish(exit_code)

        self._call(end)
        self._calls.put(None)

    def wait(self, seconds: float) -> None:
        """Until all calls are done, but no longer than that; then W&B's service is ended, whose hook at exit would wait."""
        if self._thread is not None:
            self._thread.join(seconds)
            self._warn()
            if self._thread.is_alive():
                waiting = self._calls.qsize() + self.num_dropped
                rank_zero_warn(
                    f"{type(self.logger).__name__} still hangs after {seconds:.0f} s with {waiting} calls to come; "
                    f"metrics.jsonl has every row"
                )
                _end_wandb_service()
            elif self.num_dropped:
                rank_zero_warn(
                    f"{type(self.logger).__name__} was too slow for {self.num_dropped} calls; metrics.jsonl has every row"
                )


def _end_wandb_service() -> None:
    for pid in children_of(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "wandb-core":
                os.kill(pid, signal.SIGKILL)


def close_reports(
    projection: WandbProjection | None,
    loggers: Sequence[Logger],
    summary: Mapping[str, Any],
    exit_code: int,
    finish_seconds: float,
) -> None:
    """Hand the result to all that show the record elsewhere, and wait for them, together at most about `finish_seconds`."""
    deadline = time.monotonic() + finish_seconds
    waiting = [logger for logger in loggers if isinstance(logger, BackgroundLogger)]
    for logger in waiting:
        logger.conclude(summary, exit_code)
    if projection is not None:
        projection.finish(summary, exit_code)
    for logger in waiting:
        logger.wait(max(0.0, deadline - time.monotonic()))

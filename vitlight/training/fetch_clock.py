"""When Lightning's loop asks for a batch and begins an evaluation: its profiler hooks alone tell."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from lightning.pytorch.profilers import PassThroughProfiler, Profiler

__all__ = ["FetchClock"]

_FETCH = "[_TrainingEpochLoop].train_dataloader_next"
# The first thing of an evaluation within a fit: before its workers start.
_EVALUATION = "[LightningModule]ImageClassifier.on_validation_model_zero_grad"
_NOT_TIMED: AbstractContextManager[Any] = nullcontext()


class _Listener(Protocol):
    def fetch_begins(self) -> None: ...

    def fetch_ends(self) -> None: ...

    def evaluation_begins(self) -> None: ...


class FetchClock(Profiler):
    """Tells `listener` of fetches and evaluations, and passes everything on to the profiler that the settings asked for."""

    def __init__(self, profiler: Profiler, listener: _Listener) -> None:
        super().__init__()
        self.profiler, self.listener = profiler, listener
        self._passes_on = not isinstance(profiler, PassThroughProfiler)

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]
        """Lightning opens one for each of some 50 hooks of a step, and nobody asks how long most of them take."""
        if self._passes_on or action_name in (_FETCH, _EVALUATION):
            return super().profile(action_name)
        return _NOT_TIMED

    def start(self, action_name: str) -> None:
        if action_name == _FETCH:
            self.listener.fetch_begins()
        elif action_name == _EVALUATION:
            self.listener.evaluation_begins()
        if self._passes_on:
            self.profiler.start(action_name)

    def stop(self, action_name: str) -> None:
        if self._passes_on:
            self.profiler.stop(action_name)
        if action_name == _FETCH:
            self.listener.fetch_ends()

    def summary(self) -> str:
        return self.profiler.summary()

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        self.profiler.setup(stage, local_rank, log_dir)

    def describe(self) -> None:
        self.profiler.describe()

    def teardown(self, stage: str | None) -> None:
        self.profiler.teardown(stage)

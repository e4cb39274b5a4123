"""A callback that leaves the stop file in the run's directory at a chosen moment of a run."""

from pathlib import Path

from tests.training.signal_at import SignalAt
from vitlight.training import stop_file

__all__ = ["StopFileAt"]


class StopFileAt(SignalAt):
    """As SignalAt, with the file in place of the signal; the run looks for it at every step."""

    def setup(self, trainer, pl_module, stage):
        stop_file.LOOK_SECONDS = 0.0
        super().setup(trainer, pl_module, stage)

    def _reached(self, trainer, moment, step):
        if moment == self.moment and step == self.step and trainer.global_rank == self.rank and not self.once.exists():
            self.once.touch()
            stop_file.StopFile(Path(trainer.default_root_dir)).request()

"""A callback that asks the run to end early, at a chosen moment of it."""

from pathlib import Path

from tests.training.signal_at import SignalAt
from vitlight.training.end_requests import end_request_path

__all__ = ["EndRequestAt"]


class EndRequestAt(SignalAt):
    """As SignalAt, with the request in place of the signal."""

    def _reached(self, trainer, moment, step):
        if moment == self.moment and step == self.step and trainer.global_rank == self.rank and not self.once.exists():
            self.once.touch()
            end_request_path(Path(trainer.default_root_dir)).write_text("hyperband: val/top1 0.1\nis too low\n")

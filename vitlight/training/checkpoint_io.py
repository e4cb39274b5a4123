"""Writes checkpoints while the training goes on.

Lightning's AsyncCheckpointIO is not used: it copies on the device, lets any number of saves queue up, renames nothing, and
raises an old save's error in place of a new save.
"""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from vitlight.errors import InputError
from vitlight.training.checkpoint import commit_checkpoint
from vitlight.training.host_copy import HostCopy

__all__ = ["CheckpointWriter"]


class CheckpointWriter(TorchCheckpointIO):
    """The CheckpointIO of a run: what is saved is copied, and a thread writes, flushes, digests and renames it.

    One save is in flight at most. One that fails is a line on stderr, and the run goes on; `wait` raises where no later one
    went well.

    Args:
        in_background: False: the caller waits until the checkpoint is on the disk.
        final_path: From the path that Lightning is given to the checkpoint's own.
        then: Called with the path of each checkpoint that is whole on disk, in the thread that wrote it.
    """

    def __init__(self, in_background: bool, final_path: Callable[[Path], Path], then: Callable[[Path], None]) -> None:
        self.in_background, self.final_path, self.then = in_background, final_path, then
        self.failure: str | None = None
        self.num_saves = self.num_waits = 0
        self.wait_seconds = 0.0
        self._copy = HostCopy()
        self._thread: Thread | None = None

    def settle(self) -> None:
        """Wait for the save in flight, whether it goes well or not."""
        if self._thread is not None:
            start = time.perf_counter()
            self._thread.join()
            self._thread = None
            self.wait_seconds += time.perf_counter() - start

    def settle_before_save(self) -> None:
        """`settle`, counted in `num_waits` where a save is still in flight."""
        self.num_waits += self._thread is not None and self._thread.is_alive()
        self.settle()

    def wait(self) -> None:
        """Wait for the save in flight; InputError where the last save failed."""
        self.settle()
        if self.failure is not None:
            raise InputError(self.failure)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Begin to save `checkpoint` as it is now, by way of `path`. Lightning calls it on rank 0."""
        assert storage_options is None
        self.settle()
        state = self._copy.take(checkpoint) if self.in_background else checkpoint
        self._begin(Path(path), state)

    def commit(self, path: Path) -> None:
        """The same for a folder that the ranks have already written."""
        self.settle()
        self._begin(path, None)

    def _begin(self, beside: Path, state: dict[str, Any] | None) -> None:
        self.num_saves += 1
        if not self.in_background:
            self._write(beside, state)
            return
        # Not a daemon: where the main thread ends with an error, the interpreter still waits for the checkpoint.
        self._thread = Thread(target=self._write, args=(beside, state), name="checkpoint")
        self._thread.start()

    def _write(self, beside: Path, state: dict[str, Any] | None) -> None:
        path = self.final_path(beside)
        try:
            if state is not None:
                with beside.open("wb") as file:  # not by name: torch's own writer hides why a write failed
                    torch.save(state, file)
            commit_checkpoint(beside, path)
            self.then(path)
        except Exception as error:
            self.failure = _failure(path, error)
            print(f"vitlight: {self.failure}", file=sys.stderr, flush=True)
            if not beside.is_dir():
                beside.unlink(missing_ok=True)
        else:
            self.failure = None


def _failure(path: Path, error: BaseException) -> str:
    """One line; torch raises another error while it closes a file that could not be written."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    if isinstance(cause, OSError):
        reason = cause.strerror or str(cause)
    else:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    try:
        free = f"{shutil.disk_usage(path.parent).free / 2**20:,.0f} MiB are free there"
    except OSError as missing:
        free = f"{path.parent}: {missing.strerror}"
    return f"checkpoint {path} could not be saved: {reason}; {free}, and run.root names another place"

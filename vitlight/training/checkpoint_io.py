"""Writes checkpoints while the training goes on.

Lightning's AsyncCheckpointIO is not used: it copies on the device, lets any number of saves queue up, renames nothing, and
raises an old save's error in place of a new save.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from vitlight.errors import InputError
from vitlight.messages import say
from vitlight.models.checkpoint_folder import is_checkpoint_folder, read_checkpoint_folder
from vitlight.training.checkpoint import commit_checkpoint, digest_files, flush_to_disk
from vitlight.training.host_copy import HostCopy

__all__ = ["CheckpointReader", "CheckpointWriter", "NotSaved", "root_cause"]


class NotSaved(InputError):
    """The last save of a run failed; every rank raises it."""


class CheckpointReader(TorchCheckpointIO):
    """Reads checkpoints that one process wrote, and those that several wrote, as if one had."""

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if is_checkpoint_folder(Path(path)):
            return read_checkpoint_folder(Path(path))
        return super().load_checkpoint(path, *args, **kwargs)


class CheckpointWriter(CheckpointReader):
    """The CheckpointIO of a run: what is saved is copied, and a thread writes, flushes, digests and renames it.

    One save is in flight at most. One that fails is a line on stderr, and the run goes on; `failure` says so until a later
    one went well.

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

    def wait(self, agree: Callable[[str | None], str | None] = lambda mine: mine) -> None:
        """Wait for the save in flight. NotSaved where the last save failed: `agree` makes of what the ranks know, each its
        own, what all of them raise or don't."""
        self.settle()
        failure = agree(self.failure)
        if failure is not None:
            raise NotSaved(failure)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Begin to save `checkpoint` as it is now, by way of `path`. Lightning calls it on rank 0."""
        assert storage_options is None
        self.settle()
        self._begin(self._write, checkpoint, Path(path))

    def save_parts(self, checkpoint: dict[str, Any], path: Path, group: dist.ProcessGroup) -> None:
        """The same for a checkpoint of which every rank has a part, called by all. group: of all ranks, on CPUs, used by
        nothing else while a save is in flight."""
        from vitlight.training.sharded_checkpoint import separate_parts  # what it imports takes most of a second

        self.settle()
        self._begin(self._write_parts, separate_parts(checkpoint), path, group)

    def _begin(self, write: Callable[..., None], state: dict[str, Any], *to: Any) -> None:
        self.num_saves += 1
        if not self.in_background:
            write(state, *to)
            return
        # Not a daemon: where the main thread ends with an error, the interpreter still waits for the checkpoint.
        self._thread = Thread(target=write, args=(self._copy.take(state), *to), name="checkpoint")
        self._thread.start()

    def _write(self, state: dict[str, Any], beside: Path) -> None:
        path = self.final_path(beside)
        try:
            with beside.open("wb") as file:  # not by name: torch's own writer hides why a write failed
                torch.save(state, file)
            commit_checkpoint(beside, path)
            self.then(path)
        except Exception as error:
            self._failed(_failure(path, error), beside)
        else:
            self.failure = None

    def _write_parts(self, state: dict[str, Any], beside: Path, group: dist.ProcessGroup) -> None:
        """Every rank learns how it went: `failure` is the same on all."""
        from vitlight.training.sharded_checkpoint import write_parts

        path, digests, failure = self.final_path(beside), {}, None
        try:
            files = write_parts(state, beside, group)
            for file in files:
                flush_to_disk(file)
            digests = digest_files(beside, files)
        except Exception as error:
            failure = _failure(path, error)
        try:
            written: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(written, (digests, failure), group=group)
            outcome = [next((each for _, each in written if each is not None), None)]
            is_first = dist.get_rank(group) == 0
            if is_first and outcome[0] is None:
                try:
                    commit_checkpoint(beside, path, {name: each for part, _ in written for name, each in part.items()})
                    self.then(path)
                except Exception as error:
                    outcome = [_failure(path, error)]
            dist.broadcast_object_list(outcome, src=0, group=group)
        except Exception as error:  # another rank is gone
            outcome, is_first = [_failure(path, error)], False
        if outcome[0] is None:
            self.failure = None
        else:
            self._failed(outcome[0], beside if is_first else None)

    def _failed(self, failure: str, beside: Path | None) -> None:
        """Remember it; who says so removes what was written, too."""
        self.failure = failure
        if beside is None:
            return
        say(f"vitlight: {failure}")
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            with suppress(OSError):  # where it couldn't be written it may not be removed either
                beside.unlink(missing_ok=True)


def root_cause(error: BaseException) -> BaseException:
    """The OSError that an error came of, where there is one: torch raises another while it closes the file."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return error if cause is None else cause


def _failure(path: Path, error: BaseException) -> str:
    """One line."""
    cause = root_cause(error)
    if isinstance(cause, OSError):
        reason = cause.strerror or str(cause)
    else:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    try:
        free = f"{shutil.disk_usage(path.parent).free / 2**20:,.0f} MiB are free there"
    except OSError as missing:
        free = f"{path.parent}: {missing.strerror}"
    return f"checkpoint {path} could not be saved: {reason}; {free}, and run.root names another place"

"""Signals that ask a run to stop: noted at once, answered at the next boundary between two steps.

Slurm and terminals signal every process of a job, the loader's workers and other helpers among them. So the signals are
blocked from the start, which all threads and child processes inherit, and one thread waits for them. Nothing is interrupted
in the middle of a call, and a main thread that sits in a collective or waits for data can't delay the answer for ever.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable
from multiprocessing import resource_tracker
from types import FrameType, TracebackType

from vitlight.errors import InputError
from vitlight.messages import say

__all__ = ["DEFAULT_STOP_SIGNALS", "REQUEUE", "StopSignals", "check_stop_signals"]

# Exit codes: "start me again", which is EX_TEMPFAIL of sysexits.h, and what a shell gives for Ctrl-C.
REQUEUE, INTERRUPTED = 75, 130
DEFAULT_STOP_SIGNALS = ("TERM", "USR1")
_ALLOWED = ("TERM", "USR1", "USR2", "HUP")
_WAKE = signal.SIGRTMAX  # sent to the waiting thread alone


def check_stop_signals(names: Iterable[str]) -> None:
    """InputError for a signal that can't ask for a stop, or where there is none."""
    for name in names:
        if name not in _ALLOWED:
            raise InputError(f"run.stop_signals has {name!r}, which is none of {', '.join(_ALLOWED)}")
    if not names:
        raise InputError("run.stop_signals is empty: name at least TERM, which every scheduler sends")


class StopSignals:
    """A context in which SIGTERM, SIGUSR1 (or what `listen_to` says) and SIGINT only leave a note.

    A process that works alone is ended at once until it calls `defer`: before its first step there is nothing to save. One
    of several ranks would leave the others waiting, so it always defers. A request that no boundary has answered within
    `patience_seconds` ends the process too, and so does a second SIGINT. Where the process is ended here it exits with
    REQUEUE or, after SIGINT, INTERRUPTED.
    """

    patience_seconds = 600.0

    def __init__(self) -> None:
        self.signum: int | None = None  # the first request
        self._deferred = _is_one_of_several_ranks()
        self._deadline: float | None = None
        self._closing = False

    def __enter__(self) -> "StopSignals":
        self._children_before = set(multiprocessing.active_children())
        self._listen(DEFAULT_STOP_SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        # Workers that are stuck can't be asked to end: SIGTERM is blocked in them.
        for child in set(multiprocessing.active_children()) - self._children_before:
            child.kill()

    @property
    def exit_code(self) -> int:
        """Of a run that the request has stopped."""
        return INTERRUPTED if self.signum == signal.SIGINT else REQUEUE

    @property
    def urgency(self) -> int:
        """0: no request. 1: SIGINT. 2: another signal, which decides the exit code where ranks got different ones."""
        return 0 if self.signum is None else 1 if self.signum == signal.SIGINT else 2

    def listen_to(self, names: Iterable[str], patience_seconds: float) -> None:
        """Take these signals, and SIGINT, from now on; the others do again what they did before."""
        self.patience_seconds = patience_seconds
        if set(names) != self._names:
            self._close()
            self._listen(names)

    def defer(self) -> None:
        """From now on boundaries answer."""
        self._deferred = True

    def answered(self) -> None:
        """A boundary has seen the request: saving and closing may take their time."""
        self._deadline = None

    def _listen(self, names: Iterable[str]) -> None:
        self._names = set(names)
        asked = {signal.SIGINT, *(signal.Signals[f"SIG{name}"] for name in names)}
        # What the caller ignores stays ignored: in a script, Ctrl-C is not meant for what runs in the background.
        handled = {number for number in asked if signal.getsignal(number) != signal.SIG_IGN}
        self._signals = {*handled, _WAKE}
        self._handlers_before = {}
        if threading.current_thread() is threading.main_thread():
            # For a program with threads older than this one, in which nothing is blocked.
            self._handlers_before = {number: signal.signal(number, self._handle) for number in handled}
        self._mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        resource_tracker.ensure_running()  # before Python 3.13 this unblocks SIGINT and SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        self._closing = False
        self._thread = threading.Thread(target=self._wait, name="stop-signals", daemon=True)
        self._thread.start()

    def _close(self) -> None:
        self._closing = True
        assert self._thread.ident is not None
        signal.pthread_kill(self._thread.ident, _WAKE)
        self._thread.join()
        for number, handler in self._handlers_before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)

    def _wait(self) -> None:
        while True:
            deadline = self._deadline
            if deadline is None:
                number: int | None = signal.sigwait(self._signals)
            else:
                caught = signal.sigtimedwait(self._signals, max(0.0, deadline - time.monotonic()))
                number = None if caught is None else caught.si_signo
            if self._closing:
                return
            if number is not None:
                self._note(number)
            elif self._deadline is not None:
                self._end(f"no step ended within {self.patience_seconds:g} s of it")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._note(number)

    def _note(self, number: int) -> None:
        again = self.signum == signal.SIGINT == number
        if self.signum is None:
            self.signum = number
            self._deadline = time.monotonic() + self.patience_seconds
        if again:
            self._end("asked again")
        if not self._deferred:
            self._end("before the first step")

    def _end(self, when: str) -> None:
        assert self.signum is not None
        name = signal.Signals(self.signum).name
        say(f"vitlight: stopped by {name}, {when}; the same command goes on")
        os._exit(self.exit_code)


def _is_one_of_several_ranks() -> bool:
    """As launchers say it in the environment."""
    worlds = (os.environ.get(name, "1") for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    return any(world.isdecimal() and int(world) > 1 for world in worlds)

"""Signals that stop a sweep."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["STOP_SIGNALS", "Stop", "stop_signals"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclass
class Stop:
    """Signals that have arrived."""

    signums: list[int] = field(default_factory=list)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Collect STOP_SIGNALS instead of dying of them; those that the caller ignores stay ignored."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signum, lambda number, _frame: stop.signums.append(number))
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)

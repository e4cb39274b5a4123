"""Where a run's time goes: every second belongs to one account, at a cost far below a thousandth of a step."""

import time
from collections.abc import Mapping, Sequence

from vitlight.training.run_settings import RunSettings

__all__ = [
    *("ACCOUNTS", "CHECKPOINT", "DATA_WAIT", "EVALUATION", "LOGGING", "OTHER", "STARTUP", "STEP", "Ledger", "verdict"),
]

ACCOUNTS = ("data_wait", "step", "logging", "checkpoint", "evaluation", "other", "startup")
DATA_WAIT, STEP, LOGGING, CHECKPOINT, EVALUATION, OTHER, STARTUP = range(len(ACCOUNTS))

_WAITING_SHARE = 0.1  # of the time, from which on a wait is worth a setting
_HINTS = {
    "logging": "raise run.log_every_steps={log_every_steps}, or put the run directory on a faster disk",
    "checkpoint": "raise run.checkpoint_every_steps={checkpoint_every_steps}, or put the run directory on a faster disk",
    "evaluation": "lower run.num_evaluations={num_evaluations}",
    "other": "a larger data.global_batch_size gives each step more to do",
}


class Ledger:
    """Seconds of this process by account, as the host's clock sees them.

    data_wait: in the loader's `next`. step: from then to the end of the optimizer's step, the copy to the device and mixing
    included. logging: rows, loggers and progress. checkpoint: what training waits for one. evaluation: with its start.
    other: the loop itself. startup: of each attempt until its first step is done, with the start of workers and compiling.

    A device works on after the host has handed over a step, so what the host waits for data while the device is busy costs
    nothing: `move` takes it to `step` (see device_wait).
    """

    def __init__(self) -> None:
        self.seconds = [0.0] * len(ACCOUNTS)  # of all attempts at the run
        self._marked = list(self.seconds)
        self._account = STARTUP
        self._since = time.perf_counter()

    def enter(self, account: int) -> int:
        """From now on time goes to `account`; returns the one it went to."""
        now = time.perf_counter()
        before = self._account
        self.seconds[before] += now - self._since
        self._since, self._account = now, account
        return before

    def start(self) -> None:
        """Time begins now; what passed since this object was made belongs to nobody."""
        self._since, self._account = time.perf_counter(), STARTUP

    def settle(self) -> list[float]:
        """`seconds`, up to now."""
        self.enter(self._account)
        return self.seconds

    def move(self, source: int, target: int, seconds: float) -> None:
        self.seconds[source] -= seconds
        self.seconds[target] += seconds

    @property
    def training_seconds(self) -> float:
        """Up to now, without evaluation."""
        seconds = self.settle()
        return sum(seconds) - seconds[EVALUATION]

    def since_mark(self) -> list[float]:
        """Seconds by account since the last `mark`."""
        return [now - before for now, before in zip(self.settle(), self._marked, strict=True)]

    def mark(self) -> None:
        self._marked = list(self.settle())

    def shares(self) -> dict[str, float]:
        """The part of the time in each account, start-up apart; all 0 before any time has passed."""
        seconds = dict(zip(ACCOUNTS[:STARTUP], self.settle()[:STARTUP], strict=True))
        total = sum(seconds.values())
        return {name: each / total if total else 0.0 for name, each in seconds.items()}

    def state(self) -> dict[str, float]:
        return dict(zip(ACCOUNTS, self.settle(), strict=True))

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from the state of an earlier attempt."""
        self.start()
        self.seconds = [state[name] for name in ACCOUNTS]
        self._marked = list(self.seconds)


def verdict(
    shares: Mapping[str, float],
    mfu: float | None,
    num_workers: int | None,
    settings: RunSettings,
    num_cores: int,
    hints: Sequence[str] = (),
) -> str:
    """What limits a run, with the shares that say so and what to set, in one line.

    The largest of the waits limits where it takes a tenth of the time or more; else the run is compute-bound. num_workers,
    num_cores: of one rank, which with a shared loader has no workers of its own (None). hints: what could make a
    compute-bound step faster.
    """
    waits = {name: share for name, share in shares.items() if name != "step"}
    worst = max(waits, key=lambda name: waits[name])
    if waits[worst] < _WAITING_SHARE:
        head = "compute-bound" if mfu is None else f"compute-bound (MFU {mfu:.0%})"
        hint = "; ".join(hints)
    elif worst == "data_wait":
        head = "input-bound"
        if num_workers is None:
            hint = "the loader is shared: the slowest of its cells or --share-loader-workers limits"
        elif num_workers < num_cores:
            hint = f"try data.num_workers={num_cores} ({num_workers} now, as many cores a rank)"
        else:
            hint = (
                "`vitlight data bench` says which stage limits; smaller images (`vitlight data pack --short-side`) help"
            )
    else:
        head = {"other": "bound by the loop's own work"}.get(worst, f"waiting on {worst}")
        hint = _HINTS[worst].format(**vars(settings))
        if worst == "evaluation" and settings.few_shot_every is not None:
            hint += f", or raise run.few_shot_every={settings.few_shot_every}"
    named = {"step": "in steps", "data_wait": "waiting for data", "logging": "logging", "checkpoint": "in checkpoints"}
    named |= {"evaluation": "evaluating", "other": "other"}
    parts = [f"{shares[name]:.0%} {text}" for name, text in named.items() if shares[name] >= 0.005]
    return f"{head}: {', '.join(parts)}" + (f"; {hint}" if hint else "")

"""The values of a sweep's metric that runs have logged, read again where a run has logged more."""

import json
from collections.abc import Sequence
from pathlib import Path

__all__ = ["MetricHistories", "MetricHistory"]


class MetricHistory:
    """Of one run: finite numbers, in the order of its rows. One that was set back to a checkpoint has them anew."""

    def __init__(self, run_dir: Path, metric: str) -> None:
        self.values: Sequence[float] = ()
        self.names: frozenset[str] = frozenset()  # of what the run logs, for who asks for something else
        self._path, self._metric = run_dir / "metrics.jsonl", metric
        self._stamp: tuple[int, int] | None = None

    def refresh(self) -> bool:
        """Whether there are other values than before."""
        try:
            status = self._path.stat()
            stamp = (status.st_size, status.st_mtime_ns)
            if stamp == self._stamp:
                return False
            lines = self._path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return False
        self._stamp, before = stamp, self.values
        self.values = tuple(self._numbers(lines))
        return self.values != before

    def _numbers(self, lines: Sequence[bytes]) -> list[float]:
        wanted = json.dumps(self._metric).encode()
        numbers = []
        for line in lines:
            if wanted in line or not self.names:
                row = _row(line)
                self.names |= row.keys()
                value = row.get(self._metric)
                if isinstance(value, int | float) and not isinstance(value, bool):  # NaN and infinity are null there
                    numbers.append(float(value))
        return numbers


class MetricHistories:
    """Of all runs of a sweep, by run id."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._known: dict[str, MetricHistory] = {}

    def of(self, run_dir: Path) -> MetricHistory:
        return self._known.setdefault(run_dir.name, MetricHistory(run_dir, self._metric))


def _row(line: bytes) -> dict[str, object]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}

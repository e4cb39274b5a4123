"""A file that asks a run to stop, for whoever can't send it a signal: another host, or a job that a scheduler started.

It lies in the run's directory, and the run's first rank looks for it now and then, between two steps. It is an answer to
nobody: the run saves, ends as after SIGTERM, and the file stays until the run is started again.
"""

import time
from pathlib import Path

__all__ = ["LOOK_SECONDS", "StopFile"]

LOOK_SECONDS = 2.0  # a look is one stat, on a network file system a millisecond


class StopFile:
    """`runs/NAME/RUN_ID/stop`."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "stop"
        self._found = False
        self._next_look = 0.0

    def request(self) -> None:
        """Ask the run to stop. FileNotFoundError where it has no directory yet."""
        self.path.touch()

    def withdraw(self) -> None:
        """What was asked of an earlier attempt is no request to this one."""
        self.path.unlink(missing_ok=True)

    def is_there(self) -> bool:
        """Looked at every LOOK_SECONDS at most; once found it stays found."""
        now = time.monotonic()
        if not self._found and now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._found = self.path.exists()
        return self._found

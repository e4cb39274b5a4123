"""Starts the process that is a shared loader, and holds on to it."""

import secrets
import socket
import subprocess
import sys
from pathlib import Path

from vitlight.data.shared_link import listen

__all__ = ["LoaderProcess"]

_END_SECONDS = 5.0


class LoaderProcess:
    """A loader of num_workers decoding processes and at most num_bytes of batches, which writes to `log`.

    Until it has begun, who wants to attach waits. When this object is closed, or its process has ended in whatever way, the
    loader goes on until nobody is attached any more. OSError: the log can't be written.
    """

    def __init__(self, log: Path, num_workers: int, num_bytes: int) -> None:
        self.address = f"vitlight-loader-{secrets.token_hex(8)}"
        with log.open("a") as output, listen(self.address) as listener:
            self._owner, theirs = socket.socketpair()
            with theirs:
                numbers = (listener.fileno(), theirs.fileno(), num_workers, num_bytes)
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "vitlight.data.shared_server", *map(str, numbers)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=numbers[:2],
                    process_group=0,
                )

    def __enter__(self) -> "LoaderProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def expect(self, cell: str) -> bool:
        """A cell of this name is about to start: for a while, the first ones are held back for it. False: the loader has
        ended."""
        try:
            self._owner.send(f"{cell}\n".encode())
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._owner.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.returncode = 0  # it goes on while somebody is attached: nothing to warn of

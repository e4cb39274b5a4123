"""How a cell and a shared loader find and trust each other: one node, one user, the same code.

They meet at an abstract Unix socket (Linux), which leaves no file behind, however they end. What they send are pickles, so
either makes sure that the other belongs to the same user before it reads any.
"""

import hashlib
import os
import socket
import struct
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from vitlight.data.batches import ImageBatches
from vitlight.data.plan import DataPlan

__all__ = ["CODE", "accept", "connect", "listen", "stream_key"]

# In the middle of a message, a loader waits for a cell that is stopped so long, and a cell for a loader that yet begins.
_SECONDS_FOR_CELL, _SECONDS_FOR_LOADER = 10, 300


# Modules that stand between a request and its pixels, beside those of the shared loader.
_DECIDE = ("augment", "batches", "decode", "hashing", "jpeg", "ops", "plan", "policies", "shard_index", "store")


def _code() -> tuple[str, ...]:
    """What turns the same request into the same pixels: code as it was imported, and the libraries beneath it."""
    folder = Path(__file__).parent
    paths = [*(folder / f"{name}.py" for name in _DECIDE), *sorted(folder.glob("shared_*.py"))]
    content = b"".join(path.read_bytes() for path in paths)
    return (
        hashlib.blake2b(content, digest_size=8).hexdigest(),
        sys.prefix,
        sys.version,
        torch.__version__,
        np.__version__,
    )


CODE = _code()


def stream_key(batches: ImageBatches, plan: DataPlan) -> str:
    """Of everything that decides which images come in which batch, and their pixels. Mixing comes afterwards."""
    shards: Sequence[object] = [(source.index.digest, source.index.shards) for source in batches.sources]
    decides = (
        *(plan.digest, shards, batches.size, batches.channels, batches.seed),
        *(repr(batches.augmentation), batches.skip_undecodable),
    )
    return hashlib.blake2b(repr(decides).encode(), digest_size=16).hexdigest()


def listen(address: str) -> socket.socket:
    """A socket that takes connections from now on, whoever answers them. OSError: the address is in use."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{address}")
    listener.listen(128)
    return listener


def accept(listener: socket.socket) -> Connection | None:
    """The next connection; None where another user asks."""
    channel, _ = listener.accept()
    return _trusted(channel, _SECONDS_FOR_CELL)


def connect(address: str) -> Connection:
    """OSError: nobody is there, or another user is."""
    channel = socket.socket(socket.AF_UNIX)
    try:
        channel.connect(f"\0{address}")
    except OSError:
        channel.close()
        raise
    connection = _trusted(channel, _SECONDS_FOR_LOADER)
    if connection is None:
        raise PermissionError("it belongs to another user")
    return connection


def _trusted(channel: socket.socket, seconds: int) -> Connection | None:
    with channel:
        credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", credentials)[1] != os.getuid():
            return None
        limit = struct.pack("ll", seconds, 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            channel.setsockopt(socket.SOL_SOCKET, option, limit)
        return Connection(channel.detach())

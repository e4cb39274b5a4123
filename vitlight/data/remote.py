"""Bytes of a remote shard as they come: one attempt over http(s), a filesystem of fsspec's, or a `pipe:` command."""

import contextlib
import email.utils
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any

from vitlight.data.sources import is_pipe, open_filesystem, redact, shown
from vitlight.errors import InputError

__all__ = ["Remote", "Timeouts", "TransientFault", "open_remote"]

_CHUNK_BYTES = 256 * 1024
_BLOCK_BYTES = 8 * 1024 * 1024  # of a filesystem of fsspec's: one ranged request each


class TransientFault(Exception):
    """What may go away when it is tried again.

    retry_after_seconds: what the server asked for. restart: whether what has come so far is to be thrown away.
    """

    def __init__(self, reason: str, *, retry_after_seconds: float = 0.0, restart: bool = False) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds
        self.restart = restart


@dataclass(frozen=True)
class Timeouts:
    """Seconds until a connection must stand, and until it must bring its next byte."""

    connect_seconds: float = 10.0
    stall_seconds: float = 60.0


@dataclass(frozen=True)
class Remote:
    """A shard being read."""

    start: int
    """The byte that `chunks` begins with: the one asked for, or 0 where the source can't resume."""
    num_bytes: int | None
    """Of the whole shard; None where the source doesn't tell."""
    validator: str | None
    """Changes when the shard does; None where the source has none."""
    chunks: Iterator[bytes]
    """Raises TransientFault where the source stops early and can tell."""


def open_remote(shard: str, start: int, validator: str | None, timeouts: Timeouts) -> AbstractContextManager[Remote]:
    """Reads `shard` from byte `start` on if it still has that `validator`, otherwise from 0.

    Raises TransientFault for what a later attempt may mend, and InputError for what it can't (404, 403, no such command).
    """
    if is_pipe(shard):
        return _open_pipe(shard, timeouts)
    if shard.lower().startswith(("http://", "https://")):
        return _open_http(shard, start, validator, timeouts)
    return _open_fsspec(shard, start, validator)


@contextlib.contextmanager
def _open_http(shard: str, start: int, validator: str | None, timeouts: Timeouts) -> Generator[Remote]:
    import requests

    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    limits = (timeouts.connect_seconds, timeouts.stall_seconds)
    try:
        response = requests.get(shard, headers=headers, stream=True, timeout=limits)
    except (requests.exceptions.TooManyRedirects, ValueError) as error:  # ValueError: what is wrong with the URL
        raise InputError(f"{shown(shard)}: can't be fetched: {type(error).__name__}") from error
    except requests.exceptions.RequestException as error:
        raise TransientFault(_reason(error, timeouts)) from error
    with response:
        status = f"HTTP {response.status_code} {response.reason or ''}".rstrip()
        if response.status_code == 416:
            raise TransientFault(status, restart=True)
        if response.status_code in (408, 425, 429) or response.status_code >= 500:
            raise TransientFault(status, retry_after_seconds=_retry_after(response.headers.get("Retry-After")))
        if response.status_code not in (200, 206):
            raise InputError(f"{shown(shard)}: can't be fetched: {status}")
        tag = response.headers.get("ETag", "")
        found = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
        begin, num_bytes = 0, response.headers.get("Content-Length")
        if response.status_code == 206:
            extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if extent is None or (validator and found != validator):
                raise TransientFault("another part of the shard came than was asked for", restart=True)
            begin, num_bytes = int(extent[1]), None if extent[2] == "*" else extent[2]
        size = int(num_bytes) if num_bytes is not None and num_bytes.isdigit() else None
        yield Remote(begin, size, found, _http_chunks(response, timeouts))


def _http_chunks(response: Any, timeouts: Timeouts) -> Iterator[bytes]:
    from urllib3.exceptions import HTTPError

    try:
        # read1: what came before a cut is kept; not decoded: Range counts encoded bytes
        while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
            yield chunk
    except (HTTPError, OSError) as error:
        raise TransientFault(_reason(error, timeouts)) from error


def _reason(error: Exception, timeouts: Timeouts) -> str:
    """In our words: the libraries' own messages hold whole URLs, signatures included."""
    kind = type(error).__name__
    if kind.startswith("ConnectTimeout"):
        return f"no connection within {timeouts.connect_seconds:g} s"
    if kind.startswith("ReadTimeout"):
        return f"no byte came for {timeouts.stall_seconds:g} s"
    waiting: list[BaseException] = [error]
    for each in waiting:
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
        inner = [*each.args, getattr(each, "reason", None), each.__cause__, each.__context__]
        waiting += [e for e in inner if isinstance(e, BaseException) and e not in waiting]
    return f"the connection was cut ({kind})"


def _retry_after(value: str | None) -> float:
    """Seconds from now of a Retry-After header: a number, or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


@contextlib.contextmanager
def _open_fsspec(shard: str, start: int, validator: str | None) -> Generator[Remote]:
    filesystem, path = open_filesystem(shard)
    with contextlib.ExitStack() as stack:
        try:
            filesystem.invalidate_cache(path)
            num_bytes, found = int(filesystem.info(path)["size"]), str(filesystem.ukey(path))
            begin = start if found == validator else 0
            file = stack.enter_context(filesystem.open(path, "rb", block_size=_BLOCK_BYTES, cache_type="none"))
            file.seek(begin)
        except Exception as error:
            raise _fsspec_fault(shard, error) from error
        yield Remote(begin, num_bytes, found, _fsspec_chunks(shard, file))


def _fsspec_chunks(shard: str, file: IO[bytes]) -> Iterator[bytes]:
    while True:
        try:
            chunk = file.read(_BLOCK_BYTES)
        except Exception as error:
            raise _fsspec_fault(shard, error) from error
        if not chunk:
            return
        yield chunk


def _fsspec_fault(shard: str, error: Exception) -> Exception:
    """Every filesystem has its own exceptions; only those of the standard library can be told to be final."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, FileNotFoundError):
        return InputError(f"{shown(shard)}: can't be fetched: no such file")
    if isinstance(error, PermissionError):
        return InputError(f"{shown(shard)}: can't be fetched: access denied; check your credentials")
    return TransientFault(f"{type(error).__name__}: {redact(str(error))}".rstrip(": "))


@contextlib.contextmanager
def _open_pipe(shard: str, timeouts: Timeouts) -> Generator[Remote]:
    """Runs the command in a shell; in bash, where there is one, any part of a pipeline that fails makes it fail."""
    bash = shutil.which("bash")
    shell = [bash, "-o", "pipefail", "-c"] if bash else ["/bin/sh", "-c"]
    with tempfile.TemporaryFile() as said:
        command = [*shell, shard[len("pipe:") :]]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, start_new_session=True
        )
        assert process.stdout is not None
        try:
            yield Remote(0, None, None, _pipe_chunks(shard, process, process.stdout.fileno(), said, timeouts))
        finally:
            process.stdout.close()
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _pipe_chunks(
    shard: str, process: subprocess.Popen[bytes], output: int, said: IO[bytes], timeouts: Timeouts
) -> Iterator[bytes]:
    poll = select.poll()
    poll.register(output, select.POLLIN | select.POLLHUP)
    while True:
        if not poll.poll(timeouts.stall_seconds * 1000):
            raise TransientFault(f"no byte came for {timeouts.stall_seconds:g} s", restart=True)
        chunk = os.read(output, _CHUNK_BYTES)
        if not chunk:
            break
        yield chunk
    try:
        status = process.wait(timeouts.stall_seconds)
    except subprocess.TimeoutExpired as error:
        raise TransientFault("its output ended, but the command did not", restart=True) from error
    if status == 0:
        return
    said.seek(0)
    lines = redact(said.read().decode(errors="replace")).strip().splitlines()
    how = f"exit code {status}" if status > 0 else f"killed by signal {-status}"
    reason = f"{how}: {lines[-1].strip()}" if lines else how
    if status in (126, 127):  # the shell can't run it
        raise InputError(f"{shown(shard)}: the command can't be run: {reason}")
    raise TransientFault(reason, restart=True)

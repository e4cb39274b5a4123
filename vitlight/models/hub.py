"""Weights by name or URL: fetched once, then read from the cache with no network."""

import contextlib
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from vitlight.errors import InputError
from vitlight.messages import say

__all__ = ["fetch_weights", "is_remote"]

_HUB = "hf-hub:"
# What a repository's weights are called, in the order they are looked for.
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_CONNECT_SECONDS = 10.0
_STALL_SECONDS = 60.0
_POLL_SECONDS = 0.2
_CHUNK_BYTES = 1024 * 1024
_INSTEAD = "fetch it on another machine and pass the file's path"


def is_remote(source: str) -> bool:
    """Whether `source` is a name on a hub or a URL, rather than a path."""
    return source.startswith(_HUB) or "://" in source


def _cache() -> Path:
    """Where files from URLs are kept: `weights` in $VITLIGHT_CACHE or ~/.cache/vitlight."""
    return Path(os.environ.get("VITLIGHT_CACHE") or Path.home() / ".cache" / "vitlight") / "weights"


def fetch_weights(source: str) -> Path:
    """The local file that holds `source`: `hf-hub:ORG/NAME[@REVISION][/FILE]`, or a URL (https, gs, s3, ...).

    A file that was fetched before is read from the cache, even where the source has a newer one. A name of a hub without
    FILE means its model.safetensors or, failing that, its pytorch_model.bin. Raises InputError where it can't be had: after
    10 seconds with no connection, or 60 in which no byte came.
    """
    if source.startswith(_HUB):
        return _fetch_from_hub(source)
    if not is_remote(source):
        raise InputError(f"{source} is neither a URL nor {_HUB}ORG/NAME[@REVISION][/FILE]")
    url = urlsplit(source)
    name = unquote(url.path).rstrip("/").rpartition("/")[2]
    if not name:
        raise InputError(f"{_shown(source)} names no file; give the URL of a weights file")
    path = _cache() / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}-{name}"
    if not path.is_file():
        fetch = _fetch_http if url.scheme.lower() in ("http", "https") else _fetch_fsspec
        with _written_whole(path) as beside:
            fetch(source, beside)
    return path


@contextlib.contextmanager
def _written_whole(path: Path) -> Generator[Path]:
    """A file beside `path` that takes its place when the block ends, and is gone when the block fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
    except OSError as error:
        raise InputError(f"the cache {path.parent} can't be written: {error.strerror}; set VITLIGHT_CACHE") from error
    beside = Path(name)
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _fetch_http(url: str, path: Path) -> None:
    import requests
    from urllib3.exceptions import HTTPError

    try:
        response = requests.get(
            url, headers={"Accept-Encoding": "identity"}, stream=True, timeout=(_CONNECT_SECONDS, _STALL_SECONDS)
        )
    except (requests.exceptions.RequestException, ValueError) as error:  # ValueError: what is wrong with the URL
        _fail(url, _reason(error), error)
    with response, path.open("wb") as file:
        if response.status_code != 200:
            _fail(url, f"HTTP {response.status_code} {response.reason or ''}".rstrip())
        length = response.headers.get("Content-Length", "")
        num_bytes = int(length) if length.isdigit() else None
        with _progress(url, num_bytes) as advance:
            try:
                while chunk := response.raw.read(_CHUNK_BYTES, decode_content=False):
                    file.write(chunk)
                    advance(len(chunk))
            except (HTTPError, OSError) as error:
                _fail(url, _reason(error), error)
        if num_bytes is not None and file.tell() != num_bytes:
            _fail(url, f"{file.tell()} of {num_bytes} bytes came")


def _fetch_fsspec(url: str, path: Path) -> None:
    """Copies in a thread of its own: each filesystem has its own retries, and some of them never end."""
    import fsspec  # type: ignore[import-untyped]

    num_read = 0
    failures: list[Exception] = []

    def copy() -> None:
        nonlocal num_read
        try:
            with fsspec.open(url, "rb") as remote, path.open("wb") as file:
                while chunk := remote.read(_CHUNK_BYTES):
                    num_read += file.write(chunk)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    shown, deadline = 0, time.monotonic() + _STALL_SECONDS
    with _progress(url, None) as advance:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            if num_read > shown:
                advance(num_read - shown)
                shown, deadline = num_read, time.monotonic() + _STALL_SECONDS
            elif time.monotonic() > deadline:
                _fail(url, f"no byte came for {_STALL_SECONDS:g} s")
    for error in failures:
        if isinstance(error, ImportError):
            package = getattr(error.__cause__ or error, "name", None) or str(error)
            raise InputError(f"{_shown(url)}: this needs another package; pip install {package}") from error
        _fail(url, _reason(error), error)


def _fetch_from_hub(source: str) -> Path:
    match = re.fullmatch(r"hf-hub:([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?", source)
    if match is None:
        raise InputError(f"{source} is not {_HUB}ORG/NAME[@REVISION][/FILE]")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise InputError(f"{source}: this needs another package; pip install 'vitlight[hub]'") from error

    repo, revision = match[1], match[2]
    names = (match[3],) if match[3] else _HUB_FILES
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")

    def look(**options: Any) -> Path | None:
        for name in names:
            try:
                return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision, **options))
            except errors.LocalEntryNotFoundError:  # not in the cache, and the network was not asked or did not answer
                if "endpoint" in options:
                    raise
            except errors.EntryNotFoundError:
                pass
        return None

    try:
        found = look(local_files_only=True)
        if found is None:
            if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
                _fail(source, "it is not in the cache, and HF_HUB_OFFLINE is set")
            _check_reachable(source, endpoint)
            found = look(endpoint=endpoint)
    except InputError:
        raise
    except errors.GatedRepoError as error:
        _fail(source, f"the repository is gated; ask for access at {endpoint}/{repo}, set HF_TOKEN", error)
    except errors.RepositoryNotFoundError as error:
        _fail(source, f"{endpoint} has no such repository, or none that HF_TOKEN opens", error)
    except errors.RevisionNotFoundError as error:
        _fail(source, f"the repository has no revision {revision}", error)
    except Exception as error:  # each of the library's transports has its own
        _fail(source, _reason(error), error)
    if found is None:
        _fail(source, f"the repository has no {' or '.join(names)}")
    return found


def _check_reachable(source: str, endpoint: str) -> None:
    """One quick request: the library retries for a minute or more where there is no network."""
    import requests

    try:
        requests.head(endpoint, timeout=_CONNECT_SECONDS)
    except (requests.exceptions.RequestException, ValueError) as error:
        _fail(source, f"no connection to {endpoint} ({_reason(error)})", error)


def _fail(source: str, reason: str, error: Exception | None = None) -> NoReturn:
    raise InputError(f"{_shown(source)}: can't be fetched: {reason}; {_INSTEAD}") from error


def _shown(source: str) -> str:
    """The source as messages name it: user names, passwords and queries are nobody's to read."""
    return re.sub(r"^(\w+://)(?:[^/@]*@)?([^?#]*).*$", r"\1\2", source)


def _reason(error: BaseException) -> str:
    """In our words: the libraries' own messages hold whole URLs, signatures included, and run over several lines."""
    waiting = [error]
    for each in waiting:
        if type(each).__name__.startswith("ConnectTimeout"):
            return f"no connection within {_CONNECT_SECONDS:g} s"
        if type(each).__name__.startswith("ReadTimeout"):
            return f"no byte came for {_STALL_SECONDS:g} s"
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
        inner = [*each.args, getattr(each, "reason", None), each.__cause__, each.__context__]
        waiting += [e for e in inner if isinstance(e, BaseException) and e not in waiting]
    return "no such file" if isinstance(error, FileNotFoundError) else type(error).__name__


@contextlib.contextmanager
def _progress(source: str, num_bytes: int | None) -> Generator[Callable[[int], None]]:
    """Takes numbers of bytes as they come: a bar with rate and time left in a terminal, one line at the start elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    how_much = "" if num_bytes is None else f" ({num_bytes / 1e6:,.1f} MB)"
    say(f"fetching {_shown(source)}{how_much}")
    with bar:
        task = bar.add_task("", total=num_bytes)
        yield lambda count: bar.advance(task, count)

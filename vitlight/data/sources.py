"""Where shards lie: what a `source` setting names, as paths and URLs. Imports fsspec only for a remote filesystem.

A shard is written as one string: a local path, `http(s)://...`, `s3://...`, `gs://...` (or any other filesystem that
fsspec knows), or `pipe:COMMAND`, whose standard output is the tar.
"""

import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

from vitlight.errors import InputError

__all__ = [
    "UNFINISHED_FILE",
    "default_cache_dir",
    "is_pipe",
    "is_remote",
    "local_path",
    "open_filesystem",
    "redact",
    "resolve_shards",
    "shard_name",
    "shown",
]

UNFINISHED_FILE = ".unfinished"  # beside shards whose writer has not come to its end

_PIPE = "pipe:"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_URL_INSIDE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/@'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")
_GLOB_MARKS = "*?["


def is_remote(shard: str) -> bool:
    """Whether the shard must be fetched: a URL of any scheme but `file:`, or a `pipe:` command."""
    return is_pipe(shard) or (_URL.match(shard) is not None and not shard.lower().startswith("file:"))


def is_pipe(shard: str) -> bool:
    return shard.startswith(_PIPE)


def local_path(shard: str) -> Path:
    """The path of a shard that is not remote; `file:` URLs without their scheme, host and %-escapes."""
    if not shard.lower().startswith("file:"):
        return Path(shard)
    return Path(unquote(re.sub(r"^//(localhost)?(?=/)", "", shard[len("file:") :])))


def redact(text: str) -> str:
    """`text` with every URL in it cut to scheme, host and path: user names, passwords, queries are nobody's to read."""
    return _URL_INSIDE.sub(r"\1\2", text)


def shard_name(shard: str) -> str:
    """The last component of a shard's path, for messages and for names of files.

    Of a `pipe:` command only its program and the tar it names, since any other word may be a secret.
    """
    if not is_pipe(shard):
        return redact(shard).rstrip("/").rpartition("/")[2]
    words = [word.strip("'\"") for word in redact(shard[len(_PIPE) :]).split()]
    program = next((word for word in words if "=" not in word), "")
    tar = next((word.rpartition("/")[2] for word in reversed(words) if ".tar" in word.rpartition("/")[2]), None)
    return f"{_PIPE}{program} ... {tar}" if tar else f"{_PIPE}{program}"


def shown(shard: str) -> str:
    """The shard as messages name it: with no user name, password or query."""
    return shard_name(shard) if is_pipe(shard) else redact(shard)


def default_cache_dir() -> Path:
    """$VITLIGHT_CACHE, or ~/.cache/vitlight."""
    return Path(os.environ.get("VITLIGHT_CACHE") or Path.home() / ".cache" / "vitlight")


def resolve_shards(source: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """The shards that `source` names, each once; those of a folder and of a glob in the order of their names.

    `source`: a folder of tars, a brace pattern (`x-{000000..000012}.tar`), a glob, one tar, any of these as `file:`,
    `http(s)://`, `s3://` or `gs://` URL (http has neither globs nor folders), a `pipe:` command with braces, a `.txt` file
    with one of these a line, several joined by `::` as webdataset joins them, or a list. Relative paths in a `.txt` file
    are those of the working folder. Raises InputError where it names nothing, a folder whose writing was cut off, or one
    shard twice. Whether a single tar exists is not looked up.
    """
    sources = [source] if isinstance(source, str | Path) else source
    shards: dict[str, None] = {}
    for shard in (shard for each in sources for shard in _resolve(each)):
        if shard in shards:
            raise InputError(f"{shown(shard)}: this shard is named twice; name each shard once")
        shards[shard] = None
    if not shards:
        raise InputError("no shard was given")
    # Thirty thousand Paths take 0.3 s, so their folders are found first.
    folders = dict.fromkeys(shard.rpartition("/")[0] for shard in shards if not is_remote(shard))
    _check_finished(local_path(f"{folder}/x" if folder else "x").parent for folder in folders)
    return tuple(shards)


def open_filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem of a URL and the URL's path there. Raises InputError naming the package that is missing."""
    import fsspec  # type: ignore[import-untyped]

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = getattr(error.__cause__ or error, "name", None) or str(error)
        raise InputError(f"{redact(url)}: reading from here needs another package; pip install {package}") from error
    except ValueError as error:
        raise InputError(f"{redact(url)}: can't read from here: {redact(str(error))}") from error


def _resolve(source: str | Path) -> list[str]:
    text = str(source)
    if isinstance(source, Path) or "::" not in text or Path(text).exists():
        return _resolve_one(text)
    return [shard for part in text.split("::") for shard in _resolve_one(part)]


def _resolve_one(text: str) -> list[str]:
    if not is_remote(text):
        return _resolve_path(str(local_path(text)))
    shards: list[str] = []
    for each in _expand(text):
        if is_pipe(each):
            shards.append(each)
        elif urlsplit(each).scheme.lower() in ("http", "https"):
            shards.append(_check_http(each))
        else:
            shards += _list_remote(each)
    return shards


def _resolve_path(text: str) -> list[str]:
    path = Path(text)
    if path.is_dir():
        return _list_folder(path)
    if path.exists():
        return _read_list(path) if path.suffix == ".txt" else [str(path)]
    if "{" in text:
        parts = _expand(text)
        return [shard for part in parts for shard in ([str(Path(part))] if "{" in part else _resolve_path(part))]
    if any(mark in text for mark in _GLOB_MARKS):
        found = sorted(str(Path(each)) for each in glob.glob(text, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not found:
            raise InputError(f"{text}: no file matches this pattern")
        return found
    return _read_list(path) if path.suffix == ".txt" else [str(path)]


def _list_folder(path: Path) -> list[str]:
    _check_finished([path])
    found = sorted(str(tar) for tar in path.glob("*.tar"))
    if not found:
        inside = sorted(str(tar.parent) for tar in path.glob("*/*.tar"))
        hint = f"; did you mean {' or '.join(dict.fromkeys(inside))}?" if inside else ""
        raise InputError(f"{path}: no *.tar in this folder{hint}")
    return found


def _read_list(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not UTF-8 text"
        raise InputError(f"{path}: can't read this list of shards: {reason}") from error
    if any(line.endswith(".txt") for line in lines):
        raise InputError(f"{path}: a list of shards names another list; name the shards themselves")
    return [shard for line in lines if line for shard in _resolve_one(line)]


def _expand(text: str) -> list[str]:
    if "{" not in text:
        return [text]
    try:
        return list(braceexpand(text))
    except UnbalancedBracesError as error:
        raise InputError(f"{shown(text)}: the braces of this pattern don't match") from error


def _check_http(url: str) -> str:
    path = urlsplit(url).path
    if "*" in path or path.endswith("/"):
        raise InputError(
            f"{redact(url)}: http can't list shards; name them with braces ({{000000..000012}}) or in a .txt"
        )
    return url


def _list_remote(url: str) -> list[str]:
    """What a URL of a filesystem that can list names: asks it only for a glob and for what does not end in .tar."""
    is_pattern = any(mark in url for mark in _GLOB_MARKS)
    if url.endswith(".tar") and not is_pattern:
        return [url]
    filesystem, path = open_filesystem(url)
    try:
        if is_pattern:
            found = filesystem.glob(path)
        elif filesystem.isdir(path):
            found = filesystem.glob(f"{path.rstrip('/')}/*.tar")
        else:
            return [url]
    except Exception as error:  # each filesystem raises its own
        raise InputError(
            f"{redact(url)}: can't list the shards here: {redact(str(error)) or type(error).__name__}"
        ) from error
    if not found:
        raise InputError(f"{redact(url)}: no {'file matches this pattern' if is_pattern else '*.tar in this folder'}")
    return sorted(filesystem.unstrip_protocol(each) for each in found)


def _check_finished(folders: Iterable[Path]) -> None:
    for folder in folders:
        if (folder / UNFINISHED_FILE).exists():
            raise InputError(f"{folder}: the writing of these shards was cut off; write them again")

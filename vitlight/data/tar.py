"""Reads the headers of a tar and says where every part of every sample lies; seeks over the parts themselves.

Ustar, GNU and PAX names are understood. A sample is a run of neighbouring parts with equal key, where the key is the
path up to the first dot of its last component, as webdataset has it: `a.b/cat.jpg` has key `a.b/cat`, extension `jpg`.
"""

import io
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from vitlight.data.faults import FaultError, Kind

__all__ = ["IMAGE_EXTENSIONS", "Member", "Parts", "read_range", "tar_samples"]

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "pgm", "ppm"})

_BLOCK = 512
_CHUNK_BYTES = 1 << 16
_REGULAR = (b"0", b"\0", b"7")
_SKIPPED_NAME = re.compile(rb"__[^/]*__($|/)")  # webdataset's metadata
_KEY_AND_EXTENSION = re.compile(rb"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)


class Member(NamedTuple):
    """One regular file of a tar: its name, and where its bytes lie."""

    name: bytes
    offset: int
    size: int


Parts = dict[bytes, Member]  # by lower-case extension


def tar_samples(file: BinaryIO) -> Iterator[tuple[bytes, Parts]]:
    """(key, parts) of each run of members with equal key, in the tar's order; a key for which runs come more than once
    is seen by the caller. The caller may move the file's position between two of them.

    Raises FaultError where the tar is cut off or damaged, without the run that it happened in, and after the last run
    where data follows the tar's end mark.
    """
    current: bytes | None = None
    parts: Parts = {}
    for member in _members(file):
        match = _KEY_AND_EXTENSION.match(member.name)
        if match is None or _SKIPPED_NAME.match(member.name):
            continue
        key, extension = match.group(1), match.group(2).lower()
        if key != current or extension in parts:  # an extension for the second time: the key comes twice in a row
            if current is not None:
                yield current, parts
            current, parts = key, {}
        parts[extension] = member
    end = file.tell()
    if current is not None:
        yield current, parts
    file.seek(end)
    while tail := file.read(_CHUNK_BYTES):
        if tail.strip(b"\0"):
            raise FaultError(
                Kind.TRAILING_DATA, "data after the tar's end mark; were tars joined with cat? keep them apart"
            )


def read_range(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _members(file: BinaryIO) -> Iterator[Member]:
    """The regular files of a tar; at its end the file's position is behind the end mark."""
    file_size = file.seek(0, io.SEEK_END)
    position = 0
    next_name: bytes | None = None
    next_size: int | None = None
    while True:
        header = read_range(file, position, _BLOCK)
        if len(header) < _BLOCK:
            raise FaultError(
                Kind.TRUNCATED_TAR, f"the tar is cut off at byte {position}: no end-of-archive mark; write it anew"
            )
        if header == bytes(_BLOCK):
            return
        size = _number(header[124:136])
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 0x20 or size is None:
            hint = " (it is compressed; unpack it)" if position == 0 and header[:2] == b"\x1f\x8b" else ""
            raise FaultError(Kind.DAMAGED_TAR, f"no tar header at byte {position}{hint}")
        kind = header[156:157]
        if kind in _REGULAR and next_size is not None:
            size = next_size
        offset = position + _BLOCK
        position = offset + -(-size // _BLOCK) * _BLOCK
        if offset + size > file_size:
            raise FaultError(
                Kind.TRUNCATED_TAR,
                f"the tar is cut off in {_shown(next_name or _name(header))}, which ends at byte {offset + size} of "
                f"{file_size}",
            )
        if kind == b"L":
            next_name = read_range(file, offset, size).rstrip(b"\0")
        elif kind == b"x":
            try:
                fields = _pax_fields(read_range(file, offset, size))
                next_size = int(fields[b"size"]) if b"size" in fields else next_size
            except ValueError as error:
                raise FaultError(Kind.DAMAGED_TAR, f"can't read the extended header at byte {offset}") from error
            next_name = fields.get(b"path", next_name)
        elif kind not in b"gK":
            name = next_name or _name(header)
            next_name = next_size = None
            if kind == b"S":
                raise FaultError(Kind.DAMAGED_TAR, f"{_shown(name)} is a sparse file; write the tar without them")
            if kind in _REGULAR and not name.endswith(b"/"):
                yield Member(name, offset, size)


def _shown(name: bytes) -> str:
    return repr(name.decode(errors="backslashreplace"))


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes) -> int | None:
    """A tar number: octal text, or big-endian binary where its first bit is set. None where it is neither."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        return None


def _pax_fields(data: bytes) -> dict[bytes, bytes]:
    """`LENGTH name=value\\n` records; LENGTH counts all of its record."""
    fields = {}
    while data.strip(b"\0"):
        length, _, rest = data.partition(b" ")
        record = rest[: int(length) - len(length) - 1]
        name, _, value = record.rstrip(b"\n").partition(b"=")
        fields[name] = value
        data = data[int(length) :]
    return fields

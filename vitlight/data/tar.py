"""Reads the headers of a tar and says where every sample's image lies; seeks over the images themselves.

Ustar, GNU and PAX names are understood. A sample is a run of neighbouring parts with equal key, where the key is the
path up to the first dot of its last component, as webdataset has it: `a.b/cat.jpg` has key `a.b/cat`, extension `jpg`.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from vitlight.errors import InputError

__all__ = ["IMAGE_EXTENSIONS", "SAMPLE_DTYPES", "ScannedShard", "scan_shard"]

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "pgm", "ppm"})
SAMPLE_DTYPES = {"offset": np.uint64, "size": np.uint32, "label": np.int32}

_BLOCK = 512
_HEAD_BYTES = 4096  # holds the size of most images; where it does not (a long EXIF part), all of the image is read
_EDGE_BYTES = 64
_MAX_CLS_BYTES = 64
_REGULAR = (b"0", b"\0", b"7")
_SKIPPED_NAME = re.compile(rb"__[^/]*__($|/)")  # webdataset's metadata
_KEY_AND_EXTENSION = re.compile(rb"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)


class Member(NamedTuple):
    """One regular file of a tar: its name, and where its bytes lie."""

    name: bytes
    offset: int
    size: int


@dataclass(frozen=True)
class ScannedShard:
    """What one tar holds, a row for each sample: the columns of SAMPLE_DTYPES, and the keys."""

    columns: dict[str, np.ndarray]
    keys: list[bytes]


def scan_shard(path: Path, check_images: bool = True) -> ScannedShard:
    """All samples of one tar, in its order.

    Raises InputError, naming the shard and the key, where the tar is missing, unreadable or cut off, where a sample lacks
    its image or label or has two images, and where a label is no integer in [0, 2^31). With `check_images` also where
    the first bytes of an image are not those of an image, and where it is cut off: one whose last bytes are not those of
    its kind is decoded to see.
    """
    rows: list[tuple[int, int, int]] = []
    keys: list[bytes] = []
    try:
        with path.open("rb", buffering=2 * _HEAD_BYTES) as file:
            for key, parts in _samples(_members(file, path)):
                where = f"{path}: sample {key.decode(errors='backslashreplace')!r}"
                image = _image_part(parts, where)
                label = _read_label(file, parts, where)
                if check_images:
                    _check_image(file, image, where)
                rows.append((image.offset, image.size, label))
                keys.append(key)
    except OSError as error:
        raise InputError(f"{path}: can't read this shard: {error.strerror or error}") from error
    table = np.array(rows, dtype=np.uint64).reshape(-1, 3)
    return ScannedShard(
        {name: table[:, i].astype(dtype) for i, (name, dtype) in enumerate(SAMPLE_DTYPES.items())}, keys
    )


def _samples(members: Iterator[Member]) -> Iterator[tuple[bytes, dict[bytes, Member]]]:
    """(key, {lower-case extension: member}) for each run of members with equal key."""
    current: bytes | None = None
    parts: dict[bytes, Member] = {}
    for member in members:
        match = _KEY_AND_EXTENSION.match(member.name)
        if match is None or _SKIPPED_NAME.match(member.name):
            continue
        key, extension = match.group(1), match.group(2).lower()
        if key != current or extension in parts:  # an extension for the second time: the key comes twice in a row
            if current is not None:
                yield current, parts
            current, parts = key, {}
        parts[extension] = member
    if current is not None:
        yield current, parts


def _image_part(parts: dict[bytes, Member], where: str) -> Member:
    found = [extension for extension in parts if extension.decode("latin-1") in IMAGE_EXTENSIONS]
    if len(found) == 1:
        image = parts[found[0]]
        if not 0 < image.size < 1 << 32:
            raise InputError(f"{where}: its image has {image.size} bytes; it must have 1 to 2^32 - 1")
        return image
    held = ", ".join(sorted(extension.decode(errors="backslashreplace") for extension in parts))
    rule = f"a sample has exactly one part named {', '.join(sorted(IMAGE_EXTENSIONS))}"
    raise InputError(f"{where} has {len(found) or 'no'} image{'s' * (len(found) > 1)} among its parts ({held}); {rule}")


def _read_label(file: BinaryIO, parts: dict[bytes, Member], where: str) -> int:
    if cls := parts.get(b"cls"):
        text = _read(file, cls.offset, min(cls.size, _MAX_CLS_BYTES)).decode(errors="backslashreplace").strip()
        label = int(text) if cls.size <= _MAX_CLS_BYTES and re.fullmatch(r"[+-]?[0-9]+", text) else None
    elif described := parts.get(b"json"):
        try:
            fields = json.loads(_read(file, described.offset, described.size))
        except ValueError as error:
            raise InputError(f"{where}: its .json part can't be read: {error}") from error
        if not isinstance(fields, dict) or "label" not in fields:
            raise InputError(f"{where} has no label: its .json part has no field 'label', and it has no .cls part")
        text = json.dumps(fields["label"])
        label = fields["label"] if type(fields["label"]) is int else None
    else:
        raise InputError(
            f"{where} has no label; a sample has a part .cls (an integer as text) or .json with field 'label'"
        )
    if label is None or not 0 <= label < 1 << 31:
        raise InputError(f"{where} has label {text[:_MAX_CLS_BYTES]!r}; a label is an integer from 0 to 2^31 - 1")
    return label


def _check_image(file: BinaryIO, image: Member, where: str) -> None:
    try:
        _read_image_header(_read(file, image.offset, min(image.size, _HEAD_BYTES)))
    except Exception as error:
        try:
            if image.size <= _HEAD_BYTES:
                raise
            _read_image_header(_read(file, image.offset, image.size))
        except Exception:
            extension = image.name.rsplit(b".", 1)[-1].decode("latin-1")
            raise InputError(f"{where}: its .{extension} part ({image.size} bytes) is no image: {error}") from error
    first = _read(file, image.offset, min(image.size, _EDGE_BYTES))
    last = _read(file, image.offset + image.size - len(first), len(first))
    if not _ends_as_it_began(first, last, image.size):
        from vitlight.data.decode import DecodeError, decode_image

        try:
            decode_image(_read(file, image.offset, image.size))
        except DecodeError as error:
            raise InputError(f"{where}: its image ({image.size} bytes) can't be decoded: {error}") from error


def _ends_as_it_began(first: bytes, last: bytes, size: int) -> bool:
    """Whether the end of an image is that of a whole one of its kind; True for kinds that don't mark their end."""
    if first.startswith(b"\xff\xd8"):
        return last.rstrip(b"\0").endswith(b"\xff\xd9")
    if first.startswith(b"\x89PNG"):
        return last.endswith(b"IEND\xaeB`\x82")
    if first.startswith(b"RIFF"):
        return int.from_bytes(first[4:8], "little") + 8 <= size
    return True


def _read_image_header(data: bytes) -> None:
    """Raises whatever the decoder raises where `data` doesn't begin as an image does. JPEG: 1 us; others: 11 us."""
    import simplejpeg
    from PIL import Image

    if data[:2] == b"\xff\xd8":
        simplejpeg.decode_jpeg_header(data)
    else:
        Image.open(io.BytesIO(data)).close()


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _members(file: BinaryIO, path: Path) -> Iterator[Member]:
    """The regular files of a tar; the caller may move the file's position between two of them."""
    file_size = file.seek(0, io.SEEK_END)
    position = 0
    next_name: bytes | None = None
    next_size: int | None = None
    while True:
        header = _read(file, position, _BLOCK)
        if len(header) < _BLOCK:
            raise InputError(f"{path}: the tar is cut off at byte {position}: no end-of-archive mark; write it anew")
        if header == bytes(_BLOCK):
            _check_tail(file, path)
            return
        size = _number(header[124:136])
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 0x20 or size is None:
            hint = " (it is compressed; unpack it)" if header[:2] == b"\x1f\x8b" else ""
            raise InputError(f"{path}: no tar header at byte {position}{hint}")
        kind = header[156:157]
        if kind in _REGULAR and next_size is not None:
            size = next_size
        offset = position + _BLOCK
        position = offset + -(-size // _BLOCK) * _BLOCK
        if offset + size > file_size:
            named = (next_name or _name(header)).decode(errors="backslashreplace")
            raise InputError(
                f"{path}: the tar is cut off in {named!r}, which ends at byte {offset + size} of {file_size}"
            )
        if kind == b"L":
            next_name = _read(file, offset, size).rstrip(b"\0")
        elif kind == b"x":
            try:
                fields = _pax_fields(_read(file, offset, size))
                next_size = int(fields[b"size"]) if b"size" in fields else next_size
            except ValueError as error:
                raise InputError(f"{path}: can't read the extended header at byte {offset}") from error
            next_name = fields.get(b"path", next_name)
        elif kind not in b"gK":
            name = next_name or _name(header)
            next_name = next_size = None
            if kind == b"S":
                named = name.decode(errors="backslashreplace")
                raise InputError(f"{path}: {named!r} is a sparse file; write the tar without them")
            if kind in _REGULAR and not name.endswith(b"/"):
                yield Member(name, offset, size)


def _check_tail(file: BinaryIO, path: Path) -> None:
    """Nothing but zeros may follow the end mark: what follows it (tars joined by `cat`) would be lost without a word."""
    if file.read(1 << 16).strip(b"\0"):
        raise InputError(f"{path}: data after the tar's end mark; were tars joined with cat? keep them apart")


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

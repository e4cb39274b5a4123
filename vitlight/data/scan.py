"""Scans one tar: a row for every sound sample, a fault for everything else.

`examine_shard` goes on after a fault, `scan_shard` raises the first.
"""

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitlight.data.columns import SCAN_DTYPES, ScannedShard, key_hash
from vitlight.data.faults import Fault, FaultError, Kind
from vitlight.data.labels import MAX_LABEL_BYTES, LabelReader
from vitlight.data.tar import IMAGE_EXTENSIONS, Member, Parts, read_range, tar_samples
from vitlight.errors import InputError

__all__ = ["ScanSettings", "examine_shard", "image_member", "scan_shard"]

_HEAD_BYTES = 4096  # holds the size of most images; where it does not (a long EXIF part), all of the image is read
_EDGE_BYTES = 64


@dataclass(frozen=True)
class ScanSettings:
    """What a sample's image and labels are.

    Args:
        image_part: Extension of the part that is the image; None: the only one in IMAGE_EXTENSIONS.
        decode: Decode every image; otherwise its first and last bytes are looked at, and only one whose last bytes are not
            those of its kind is decoded.
    """

    labels: LabelReader = field(default_factory=LabelReader)
    image_part: str | None = None
    decode: bool = False


@dataclass
class _Run:
    """A sample as it comes: its row or what is wrong with it."""

    key: bytes
    extensions: frozenset[bytes]
    outcome: tuple[int, int, tuple[int, ...]] | FaultError
    """(offset, size, labels), or the fault."""


def scan_shard(path: Path, settings: ScanSettings, shard: str | None = None) -> ScannedShard:
    """All samples of one tar. Raises InputError for the first thing that is wrong with it, naming shard and key."""
    scan, faults = examine_shard(path, settings, shard)
    if faults:
        raise InputError(str(faults[0]))
    return scan


def examine_shard(path: Path, settings: ScanSettings, shard: str | None = None) -> tuple[ScannedShard, list[Fault]]:
    """The sound samples of one tar, and everything that is wrong with it, in the order of the tar.

    A tar that is cut off or damaged is read up to there; the sample in which it happened counts as part of that fault.
    `shard` names the tar in faults; by default its path.
    """
    shard = shard or str(path)
    runs: list[_Run] = []
    faults: list[Fault] = []
    num_bytes, num_names = 0, settings.labels.num_names
    try:
        with path.open("rb", buffering=2 * _HEAD_BYTES) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            for key, parts in tar_samples(file):
                runs.append(_Run(key, frozenset(parts), _examine_sample(file, parts, settings)))
    except FaultError as fault:
        faults.append(Fault(fault.kind, shard, None, fault.detail))
    except OSError as error:
        kind = Kind.MISSING_SHARD if isinstance(error, FileNotFoundError) else Kind.UNREADABLE_SHARD
        faults.append(Fault(kind, shard, None, f"can't read this shard: {error.strerror or error}"))
    rows, sample_faults = [], []
    for key, outcome in _join_runs(runs):
        if isinstance(outcome, FaultError):
            shown = key.decode(errors="backslashreplace")
            sample_faults.append(Fault(outcome.kind, shard, shown, outcome.detail))
        else:
            rows.append((key, *outcome))
    scan = ScannedShard(_columns(rows), num_bytes, has_class_names=settings.labels.num_names > num_names)
    return scan, sample_faults + faults


def _examine_sample(
    file: BinaryIO, parts: Parts, settings: ScanSettings
) -> tuple[int, int, tuple[int, ...]] | FaultError:
    try:
        image = image_member(parts, settings.image_part)
        part = settings.labels.part(parts)
        where = parts[part.encode()]
        size = where.size if part == "json" else min(where.size, MAX_LABEL_BYTES + 1)
        labels = settings.labels.read(part, read_range(file, where.offset, size))
        _check_image(file, image, settings.decode)
    except FaultError as fault:
        return fault
    return image.offset, image.size, labels


def _join_runs(runs: list[_Run]) -> Iterator[tuple[bytes, tuple[int, int, tuple[int, ...]] | FaultError]]:
    """Each run's key and outcome; runs of one key with different parts are one sample, written in pieces."""
    first: dict[bytes, _Run] = {}
    split: dict[bytes, FaultError] = {}
    twice: set[int] = set()
    for number, run in enumerate(runs):
        begin = first.setdefault(run.key, run)
        if begin is run:
            continue
        if begin.extensions.isdisjoint(run.extensions):
            split[run.key] = FaultError(
                Kind.SPLIT_SAMPLE,
                f"its parts are not adjacent ({_listed(begin.extensions)}, and after other samples "
                f"{_listed(run.extensions)}); write the tar sorted by name",
            )
        else:
            twice.add(number)
    for number, run in enumerate(runs):
        if run.key in split:
            if first[run.key] is run:
                yield run.key, split[run.key]
        elif number in twice:
            shown = run.key.decode(errors="backslashreplace")
            detail = f"key {shown!r} comes twice in this shard; every sample must have its own key"
            yield run.key, FaultError(Kind.DUPLICATE_KEY, detail)
        else:
            yield run.key, run.outcome


def _columns(rows: list[tuple[bytes, int, int, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    ends = np.cumsum([0, *(len(key) for key, *_ in rows)], dtype=np.uint64)
    extras = [(row, label) for row, (*_, labels) in enumerate(rows) for label in labels[1:]]
    values = {
        "offset": [offset for _, offset, _, _ in rows],
        "size": [size for _, _, size, _ in rows],
        "label": [labels[0] for *_, labels in rows],
        "key_hash": [key_hash(key) for key, *_ in rows],
        "key_offset": ends[:-1],
        "key_bytes": np.frombuffer(b"".join(key for key, *_ in rows), np.uint8),
        "extra_row": [row for row, _ in extras],
        "extra_label": [label for _, label in extras],
    }
    return {name: np.asarray(values[name], dtype) for name, dtype in SCAN_DTYPES.items()}


def _listed(extensions: Iterable[bytes]) -> str:
    return ", ".join(sorted(extension.decode(errors="backslashreplace") for extension in extensions))


def image_member(parts: Parts, wanted: str | None) -> Member:
    """The part of a sample that is its image: the one with extension `wanted`, or the only one in IMAGE_EXTENSIONS.
    Raises FaultError where there is none, or several."""
    if wanted is None:
        found = [extension for extension in parts if extension.decode("latin-1") in IMAGE_EXTENSIONS]
    else:
        found = [extension for extension in parts if extension == wanted.lower().encode()]
    if len(found) != 1:
        raise _wrong_images(parts, found, wanted)
    image = parts[found[0]]
    if not 0 < image.size < 1 << 32:
        kind = Kind.BAD_IMAGE if image.size else Kind.EMPTY_IMAGE
        raise FaultError(kind, f"its image has {image.size} bytes; it must have 1 to 2^32 - 1")
    return image


def _wrong_images(parts: Parts, found: list[bytes], wanted: str | None) -> FaultError:
    inside = sorted(e for e in parts if e.rpartition(b".")[2].decode("latin-1") in IMAGE_EXTENSIONS)
    if wanted is not None:
        rule = f"data.image_part={wanted} names the part to take"
    elif inside:
        rule = f"set data.image_part to the one to take: {_listed(inside)}"
    else:
        rule = f"a sample has exactly one part named {', '.join(sorted(IMAGE_EXTENSIONS))}"
    number = f"{len(found)} images" if found else "no image"
    kind = Kind.SEVERAL_IMAGES if found else Kind.NO_IMAGE
    return FaultError(kind, f"{number} among its parts ({_listed(parts)}); {rule}")


def _check_image(file: BinaryIO, image: Member, decode: bool) -> None:
    if not decode:
        try:
            _read_image_header(read_range(file, image.offset, min(image.size, _HEAD_BYTES)))
        except Exception as error:
            try:
                if image.size <= _HEAD_BYTES:
                    raise
                _read_image_header(read_range(file, image.offset, image.size))
            except Exception:
                extension = image.name.rpartition(b".")[2].decode("latin-1")
                raise FaultError(
                    Kind.BAD_IMAGE, f"its .{extension} part ({image.size} bytes) is no image: {_first_line(error)}"
                ) from error
        first = read_range(file, image.offset, min(image.size, _EDGE_BYTES))
        last = read_range(file, image.offset + image.size - len(first), len(first))
        if _ends_as_it_began(first, last, image.size):
            return
    from vitlight.data.decode import DecodeError, decode_image

    try:
        decode_image(read_range(file, image.offset, image.size))
    except DecodeError as error:
        raise FaultError(
            Kind.BAD_IMAGE, f"its image ({image.size} bytes) can't be decoded: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


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

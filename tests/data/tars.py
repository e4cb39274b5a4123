"""Tiny tars and images for the tests of what reads them."""

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from vitlight.data.scan import ScanSettings, scan_shard

__all__ = ["image_bytes", "read_by_webdataset", "scanned_rows", "write_tar"]


def image_bytes(shade: int = 0, form: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 128, 255 - shade)).save(buffer, form)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read_by_webdataset(path: Path) -> Iterator[dict[str, Any]]:
    """Its samples; through its own stages, since a whole WebDataset leaves its files open."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with path.open("rb") as stream:
        yield from group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))


def scanned_rows(path: Path, settings: ScanSettings | None = None) -> list[tuple[str, bytes, int]]:
    """(key, image bytes, label) as the scan finds them."""
    scan, data = scan_shard(path, settings or ScanSettings()), path.read_bytes()
    offsets, sizes, labels = (scan.columns[name].tolist() for name in ("offset", "size", "label"))
    images = [data[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]
    return [(key.decode(), image, label) for key, image, label in zip(scan.keys, images, labels, strict=True)]

"""FFCV: its own file, holding the very JPEG bytes of the shards; its compiled pipeline decodes and crops in two threads.

For PNGs, which FFCV can't hold, the file holds raw pixels, as its CIFAR example does.
"""

import io
import time
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, ToTensor
from ffcv.writer import DatasetWriter
from PIL import Image

from peers.case import BATCH_SIZE, MAX_RATIO, MIN_AREA, WORKERS, Case

SETTINGS = (
    "same JPEG bytes (PNGs: raw pixels), RandomResizedCropRGBImageDecoder, flip, os_cache, random order, 2 threads"
)
DISTRIBUTIONS = ("ffcv", "numba", "torch")
# Seen with numba 0.68: its TBB and OpenMP layers gave all of FFCV's work to one thread; this one uses both.
numba.config.THREADING_LAYER = "workqueue"
FILE = "images.beton"
REPEATS = 400


class EncodedImageField(RGBImageField):
    """RGBImageField that stores the JPEG it is given instead of encoding one."""

    def encode(self, destination: Any, image: tuple[bytes, int, int], malloc: Any) -> None:
        encoded, width, height = image
        if not encoded.startswith(b"\xff\xd8"):
            super().encode(destination, np.array(Image.open(io.BytesIO(encoded)).convert("RGB")), malloc)
            return
        destination["mode"] = IMAGE_MODES["jpg"]
        destination["height"], destination["width"] = height, width
        destination["data_ptr"], storage = malloc(len(encoded))
        storage[:] = np.frombuffer(encoded, np.uint8)


class _Samples:
    def __init__(self, case: Case) -> None:
        self.samples = [((encoded, case.width, case.height), label) for encoded, label in case.samples()]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[tuple[bytes, int, int], int]:
        return self.samples[i]


def prepare(case: Case) -> None:
    path = case.own_folder("ffcv") / FILE
    fields = {"image": EncodedImageField(write_mode="raw"), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=WORKERS).from_indexed_dataset(_Samples(case))


def _loader(case: Case, image: list[Any], threads: int) -> Loader:
    return Loader(
        str(case.own_folder("ffcv") / FILE),
        batch_size=BATCH_SIZE,
        num_workers=threads,
        os_cache=True,
        order=OrderOption.RANDOM,
        # One long epoch: a real one is so long that starting the next costs nothing.
        indices=np.tile(np.arange(case.num_images), REPEATS),
        drop_last=True,
        custom_fields={"image": EncodedImageField},
        pipelines={"image": image, "label": [IntDecoder(), ToTensor()]},
    )


def _random_crop(case: Case) -> list[Any]:
    size = (case.output_size, case.output_size)
    crop = RandomResizedCropRGBImageDecoder(size, scale=(MIN_AREA, 1.0), ratio=(1 / MAX_RATIO, MAX_RATIO))
    return [crop, RandomHorizontalFlip(), ToTensor()]


def batches(case: Case) -> Iterator[torch.Tensor]:
    for image, _ in _loader(case, _random_crop(case), WORKERS):
        yield image


def _seconds(case: Case, image: list[Any]) -> float:
    iterator = iter(_loader(case, image, threads=1))
    for _ in range(8):
        next(iterator)
    num_batches, start = 0, time.perf_counter()
    while time.perf_counter() - start < 1.5:
        next(iterator)
        num_batches += 1
    return (time.perf_counter() - start) / num_batches / BATCH_SIZE


def stage_seconds(case: Case) -> dict[str, float]:
    """By difference between decoding alone and the whole, with one thread."""
    decode = _seconds(case, [SimpleRGBImageDecoder(), ToTensor()])
    return {"decode": decode, "resize": max(0.0, _seconds(case, _random_crop(case)) - decode)}

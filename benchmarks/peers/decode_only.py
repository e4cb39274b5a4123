"""The bound: two processes that only decode whole images, from bytes that lie in memory; nothing is passed on."""

import io
import multiprocessing
import time
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from peers.case import WORKERS, Case, seconds_each

SETTINGS = "simplejpeg.decode_jpeg with default flags (PNGs: Pillow), whole images, bytes in memory, 2 processes"
DISTRIBUTIONS = ("simplejpeg", "pillow", "numpy")
FLAGS: dict[str, Any] = {}


def decode(encoded: bytes, flags: dict[str, Any]) -> np.ndarray:
    if encoded[:2] == b"\xff\xd8":
        return simplejpeg.decode_jpeg(encoded, **flags)
    with Image.open(io.BytesIO(encoded)) as image:
        return np.array(image.convert("RGB"))


def _work(encoded: list[bytes], flags: dict[str, Any], seconds: float, ready: Barrier, results: Any) -> None:
    for item in encoded[:50]:
        decode(item, flags)
    ready.wait()
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        decode(encoded[images % len(encoded)], flags)
        images += 1
    results.put(images / (time.perf_counter() - start))


def rate(case: Case, seconds: float, flags: dict[str, Any] = FLAGS) -> tuple[float, float]:
    """Images and seconds: both processes start together and count what they decode in the same time."""
    samples = [encoded for encoded, _ in case.samples()]
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(WORKERS), context.SimpleQueue()
    parts = [samples[i::WORKERS] for i in range(WORKERS)]
    workers = [context.Process(target=_work, args=(part, flags, seconds, ready, results)) for part in parts]
    for worker in workers:
        worker.start()
    images_per_second = sum(results.get() for _ in workers)
    for worker in workers:
        worker.join()
    return images_per_second * seconds, seconds


def stage_seconds(case: Case, flags: dict[str, Any] = FLAGS) -> dict[str, float]:
    encoded = [image for image, _ in case.samples()][:64]
    return {"decode": seconds_each(lambda item: decode(item, flags), encoded)}

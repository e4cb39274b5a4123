"""NVIDIA DALI on the CPU: its WebDataset reader, decoding fused with the random crop, in two threads."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from nvidia.dali import fn, pipeline_def, types

from peers.case import BATCH_SIZE, MAX_RATIO, MIN_AREA, WORKERS, Case

SETTINGS = (
    "readers.webdataset, decoders.image_random_crop with use_fast_idct, resize INTERP_TRIANGULAR (as DALI's ResNet-50 "
    "example), flip; 2 threads, prefetch 2"
)
DISTRIBUTIONS = ("nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13")


@pipeline_def(batch_size=BATCH_SIZE, device_id=None, prefetch_queue_depth=2)
def _pipeline(case: Case, stage: str) -> Any:
    encoded, label = fn.readers.webdataset(
        paths=list(case.shards),
        ext=[case.extension, "cls"],
        missing_component_behavior="error",
        random_shuffle=True,
        initial_fill=512,
        name="reader",
    )
    if stage == "read":
        return encoded, label
    pixels = fn.decoders.image_random_crop(
        encoded,
        device="cpu",
        output_type=types.RGB,
        random_area=[MIN_AREA, 1.0],
        random_aspect_ratio=[1 / MAX_RATIO, MAX_RATIO],
        use_fast_idct=True,
    )
    if stage == "decode":
        return pixels, label
    size = case.output_size
    images = fn.resize(pixels, resize_x=size, resize_y=size, interp_type=types.INTERP_TRIANGULAR)
    return fn.flip(images, horizontal=fn.random.coin_flip(probability=0.5)), label


def batches(case: Case) -> Iterator[torch.Tensor]:
    pipeline = _pipeline(case, "all", num_threads=WORKERS)
    pipeline.build()
    while True:
        images, _ = pipeline.run()
        # The buffer is reused two runs later; a loader hands out memory of its own.
        yield torch.from_numpy(images.as_array().copy())


def stage_seconds(case: Case) -> dict[str, float]:
    """By difference between the pipelines that end after each stage, with one thread."""
    ends = {}
    for stage in ("read", "decode", "resize"):
        pipeline = _pipeline(case, stage, num_threads=1)
        pipeline.build()
        for _ in range(4):
            pipeline.run()
        runs, start = 0, time.perf_counter()
        while time.perf_counter() - start < 1.5:
            pipeline.run()
            runs += 1
        ends[stage] = (time.perf_counter() - start) / runs / BATCH_SIZE
    return {
        "read": ends["read"],
        "decode": max(0.0, ends["decode"] - ends["read"]),
        "resize": max(0.0, ends["resize"] - ends["decode"]),
    }

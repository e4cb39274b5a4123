"""SPDL with its own FFmpeg decoding: batches of encoded bytes through a pipeline of two threads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import spdl.io
import torch
from spdl.pipeline import PipelineBuilder

from peers.case import BATCH_SIZE, WORKERS, Case, random_box, read_range, seconds_each

SETTINGS = (
    "PipelineBuilder, 2 threads, spdl.io: decode with threads=1, filter crop + bicubic scale + hflip, convert_frames"
)
DISTRIBUTIONS = ("spdl_core", "spdl_io")


class Loading:
    def __init__(self, case: Case) -> None:
        self.case, self.rng = case, np.random.default_rng(0)
        self.decode_config = spdl.io.decode_config(decoder_options={"threads": "1"})

    def source(self, members: list[tuple[str, int, int, int]]) -> Iterator[list[tuple[Any, tuple[int, ...], bool]]]:
        """Endless batches of what to read, and how to crop it."""
        while True:
            order = self.rng.permutation(len(members))
            for start in range(0, len(members) - BATCH_SIZE + 1, BATCH_SIZE):
                chosen = [members[i] for i in order[start : start + BATCH_SIZE]]
                yield [
                    (m, random_box(self.case.width, self.case.height, self.rng), bool(self.rng.random() < 0.5))
                    for m in chosen
                ]

    def filters(self, box: tuple[int, ...], flip: bool) -> str:
        left, top, w, h = box
        size = self.case.output_size
        crop = f"crop={w}:{h}:{left}:{top}:exact=1,scale={size}:{size}:flags=bicubic"
        return crop + (",hflip" if flip else "") + ",format=pix_fmts=rgb24"

    def frames(self, encoded: bytes, filter_desc: str | None) -> Any:
        packets = spdl.io.demux_image(encoded)
        return spdl.io.decode_packets(packets, decode_config=self.decode_config, filter_desc=filter_desc)

    def load(self, requests: list[tuple[Any, tuple[int, ...], bool]]) -> np.ndarray:
        frames = [self.frames(read_range(member), self.filters(box, flip)) for member, box, flip in requests]
        return spdl.io.to_numpy(spdl.io.convert_frames(frames))


def batches(case: Case) -> Iterator[torch.Tensor]:
    loading = Loading(case)
    builder = (
        PipelineBuilder().add_source(loading.source(case.members())).pipe(loading.load, concurrency=WORKERS).add_sink(4)
    )
    pipeline = builder.build(num_threads=WORKERS)
    with pipeline.auto_stop():
        for images in pipeline:
            yield torch.from_numpy(images)


def stage_seconds(case: Case) -> dict[str, float]:
    loading = Loading(case)
    members = case.members()[:64]
    encoded = [read_range(member) for member in members]
    requests = next(loading.source(members))
    decode = seconds_each(lambda item: loading.frames(item, None), encoded)
    whole = seconds_each(loading.load, [requests]) / len(requests)
    read = seconds_each(read_range, members)
    return {"read": read, "decode": decode, "resize": max(0.0, whole - decode - read)}

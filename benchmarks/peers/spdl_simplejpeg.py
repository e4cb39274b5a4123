"""SPDL's pipeline of two threads around simplejpeg and torch, whose calls release Python's lock."""

from collections.abc import Iterator

import numpy as np
import torch
from spdl.pipeline import PipelineBuilder

from peers import torch_crop
from peers.case import BATCH_SIZE, WORKERS, Case, read_range, seconds_each

SETTINGS = "PipelineBuilder, 2 threads, each loading a whole batch with simplejpeg and torch bicubic on uint8"
DISTRIBUTIONS = ("spdl_core", "simplejpeg", "torch")


def _orders(members: list[tuple[str, int, int, int]]) -> Iterator[list[tuple[str, int, int, int]]]:
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(members))
        for start in range(0, len(members) - BATCH_SIZE + 1, BATCH_SIZE):
            yield [members[i] for i in order[start : start + BATCH_SIZE]]


def batches(case: Case) -> Iterator[torch.Tensor]:
    torch.set_num_threads(1)
    transform = torch_crop.CropResizeFlip(case.output_size)

    def load(members: list[tuple[str, int, int, int]]) -> torch.Tensor:
        return torch.stack([transform(torch_crop.decode(read_range(member))) for member in members])

    builder = PipelineBuilder().add_source(_orders(case.members())).pipe(load, concurrency=WORKERS).add_sink(4)
    pipeline = builder.build(num_threads=WORKERS)
    with pipeline.auto_stop():
        yield from pipeline


def stage_seconds(case: Case) -> dict[str, float]:
    return {"read": seconds_each(read_range, case.members()[:512]), **torch_crop.stage_seconds(case)}

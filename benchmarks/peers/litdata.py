"""litdata: its optimised chunks, holding the same encoded bytes, through its StreamingDataset and StreamingDataLoader."""

from collections.abc import Iterator
from typing import Any

import torch
from litdata import ParallelStreamingDataset, StreamingDataLoader, StreamingDataset, optimize

from peers import torch_crop
from peers.case import BATCH_SIZE, WORKERS, Case, seconds_each

SETTINGS = (
    "chunks of 64 MB in a local folder, encoded bytes, shuffle, cycled endlessly; simplejpeg, torch bicubic on uint8"
)
DISTRIBUTIONS = ("litdata", "torch", "simplejpeg")
ENDLESS = 10**7


def _same(sample: tuple[bytes, int]) -> dict[str, Any]:
    return {"image": sample[0], "label": sample[1]}


def prepare(case: Case) -> None:
    folder = str(case.own_folder("litdata"))
    optimize(fn=_same, inputs=list(case.samples()), output_dir=folder, chunk_bytes="64MB", num_workers=1, verbose=False)


class Images(StreamingDataset):
    def __init__(self, case: Case) -> None:
        super().__init__(str(case.own_folder("litdata")), shuffle=True)
        self.image_transform = torch_crop.CropResizeFlip(case.output_size)

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, int]:
        sample = super().__getitem__(index)
        return self.image_transform(torch_crop.decode(bytes(sample["image"]))), sample["label"]


def batches(case: Case) -> Iterator[torch.Tensor]:
    endless = ParallelStreamingDataset([Images(case)], length=ENDLESS)
    for ((image, _),) in StreamingDataLoader(endless, batch_size=BATCH_SIZE, num_workers=WORKERS, drop_last=True):
        yield image


def stage_seconds(case: Case) -> dict[str, float]:
    stored = StreamingDataset(str(case.own_folder("litdata")))

    def epoch(_: None) -> None:
        for _sample in stored:
            pass

    return {"read": seconds_each(epoch, [None]) / case.num_images, **torch_crop.stage_seconds(case)}

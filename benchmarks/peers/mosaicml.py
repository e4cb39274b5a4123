"""mosaicml streaming: MDS shards, holding the same encoded bytes, through its StreamingDataset and StreamingDataLoader."""

from collections.abc import Iterator
from typing import Any

import torch

from peers import torch_crop, torchvision_import  # noqa: F401  torchvision must be importable before streaming is
from peers.case import BATCH_SIZE, WORKERS, Case, seconds_each

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # isort: skip
from streaming.base.util import clean_stale_shared_memory  # isort: skip

SETTINGS = "MDS shards of 64 MB in a local folder, encoded bytes, shuffle py1e; simplejpeg, torch bicubic on uint8"
DISTRIBUTIONS = ("mosaicml-streaming", "torch", "simplejpeg")
EPOCH_PASSES = 200


def prepare(case: Case) -> None:
    columns = {"image": "bytes", "label": "int"}
    with MDSWriter(out=str(case.own_folder("mosaicml")), columns=columns, size_limit=1 << 26) as writer:
        for image, label in case.samples():
            writer.write({"image": image, "label": label})


def _stored(case: Case, **settings: Any) -> dict[str, Any]:
    return {"local": str(case.own_folder("mosaicml")), "batch_size": BATCH_SIZE, **settings}


class Images(StreamingDataset):
    def __init__(self, case: Case) -> None:
        # One long epoch: a real one is so long that starting the next costs nothing.
        super().__init__(**_stored(case, shuffle=True, epoch_size=EPOCH_PASSES * case.num_images))
        self.image_transform = torch_crop.CropResizeFlip(case.output_size)

    def __getitem__(self, at: Any) -> tuple[torch.Tensor, int]:
        sample = super().__getitem__(at)
        return self.image_transform(torch_crop.decode(sample["image"])), sample["label"]


def batches(case: Case) -> Iterator[torch.Tensor]:
    clean_stale_shared_memory()  # of an earlier process that was ended without ado
    for image, _ in StreamingDataLoader(Images(case), batch_size=BATCH_SIZE, num_workers=WORKERS, drop_last=True):
        yield image


def stage_seconds(case: Case) -> dict[str, float]:
    stored = StreamingDataset(**_stored(case))
    return {
        "read": seconds_each(stored.__getitem__, range(min(512, case.num_images))),
        **torch_crop.stage_seconds(case),
    }

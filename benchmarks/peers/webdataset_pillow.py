"""webdataset with Pillow and torchvision's transforms, in the order of open_clip's `get_wds_dataset` (resampled shards,
split by worker, shuffle, decode "pilrgb", map, batch, WebLoader), with uint8 output as timm's loader hands on."""

from collections.abc import Iterator

import numpy as np
import torch
import webdataset as wds
from PIL import Image

from peers.case import BATCH_SIZE, MAX_RATIO, MIN_AREA, WORKERS, Case, seconds_each
from peers.torchvision_import import transforms

SETTINGS = (
    "resampled shards, shuffle buffer 1000 (initial 200), decode pilrgb, torchvision RandomResizedCrop bicubic and flip on "
    "Pillow images, uint8 batches made in the worker"
)
DISTRIBUTIONS = ("webdataset", "pillow", "torchvision", "torch")


def _transform(case: Case) -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                case.output_size,
                scale=(MIN_AREA, 1.0),
                ratio=(1 / MAX_RATIO, MAX_RATIO),
                interpolation=transforms.InterpolationMode.BICUBIC,
            ),
            transforms.RandomHorizontalFlip(),
        ]
    )


def _to_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


def _collate(samples: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(np.stack([image for image, _ in samples]))
    return images, torch.tensor([label for _, label in samples])


def batches(case: Case) -> Iterator[torch.Tensor]:
    transform = _transform(case)
    dataset = wds.DataPipeline(
        wds.ResampledShards(list(case.shards)),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.shuffle(1000, initial=200),
        wds.decode("pilrgb"),
        wds.rename(image=case.extension, label="cls"),
        wds.map_dict(image=lambda image: _to_array(transform(image))),
        wds.to_tuple("image", "label"),
        wds.batched(BATCH_SIZE, partial=False, collation_fn=_collate),
    )
    for images, _ in wds.WebLoader(
        dataset, batch_size=None, shuffle=False, num_workers=WORKERS, persistent_workers=True
    ):
        yield images


def stage_seconds(case: Case) -> dict[str, float]:
    samples = list(case.samples())[:64]
    decode = wds.autodecode.imagehandler("pilrgb")
    transform = _transform(case)
    encoded = [image for image, _ in samples]
    decoded = [decode(f"x.{case.extension}", image) for image in encoded]
    arrays = [(_to_array(transform(image)), 0) for image in decoded]
    readers = [
        lambda _: sum(1 for _ in wds.DataPipeline(wds.SimpleShardList(list(case.shards)), wds.tarfile_to_samples()))
    ]
    return {
        "read": seconds_each(lambda read: read(None), readers) / case.num_images,
        "decode": seconds_each(lambda image: decode(f"x.{case.extension}", image), encoded),
        "resize": seconds_each(transform, decoded),
        "collate": seconds_each(_collate, [arrays]) / len(arrays),
    }

"""vitlight: the training loader that `vitlight fit` uses, built by its own data module from the same tars."""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

import vitlight.data.batches as batches_module
import vitlight.data.decode as decode_module
from peers.case import BATCH_SIZE, WORKERS, Case
from vitlight.data.batches import ImageBatches
from vitlight.data.datamodule import ShardedImages
from vitlight.data.image_loader import keep_freed_memory

SETTINGS = "data.num_workers=2, augmentation defaults (crop and flip), the other settings as they are"
DISTRIBUTIONS = ("vitlight", "torch", "simplejpeg", "pillow")
ENDLESS_STEPS = 10**6


def _loader(case: Case) -> Any:
    data = ShardedImages(
        train=case.folder,
        num_classes=case.num_classes,
        image_size=case.output_size,
        global_batch_size=BATCH_SIZE,
        val_fraction=0.0,
        num_workers=WORKERS,
        index_dir=str(Path(case.folder) / "vitlight"),
    )
    data.trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    data.prepare()
    data.num_steps = ENDLESS_STEPS
    return data.train_dataloader()


def batches(case: Case) -> Iterator[torch.Tensor]:
    for batch in _loader(case):
        yield batch["image"]


def stage_seconds(case: Case) -> dict[str, float]:
    """Inside the making of whole batches, as a worker makes them; `collate` is all that the others are not."""
    torch.set_num_threads(1)
    loader = _loader(case)
    images: ImageBatches = loader.dataset.batches
    later = 2 * 2048 // BATCH_SIZE  # images of a first epoch are decoded whole
    requests = [request for request, _ in itertools.islice(loader.sampler, later, later + 4)]
    slot = torch.empty(BATCH_SIZE, case.output_size, case.output_size, 3, dtype=torch.uint8)
    keep_freed_memory()
    spent = {"read": 0.0, "decode_crop": 0.0, "crop_and_resize": 0.0}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **options)
            spent[name] += time.perf_counter() - start
            return result

        return call

    for source in images.sources:
        store: Any = source.store
        store.read = timed("read", store.read)
    batches_module.decode_crop = timed("decode_crop", batches_module.decode_crop)
    decode_module.crop_and_resize = timed("crop_and_resize", decode_module.crop_and_resize)
    for request in requests:
        images.load(request, slot)
    for name in spent:
        spent[name] = 0.0
    num_images, start = 0, time.perf_counter()
    while time.perf_counter() - start < 2.0:
        for request in requests:
            num_images += len(images.load(request, slot)["label"])
    whole = time.perf_counter() - start
    return {
        "read": spent["read"] / num_images,
        "decode": (spent["decode_crop"] - spent["crop_and_resize"]) / num_images,
        "resize": spent["crop_and_resize"] / num_images,
        "collate": (whole - spent["read"] - spent["decode_crop"]) / num_images,
    }

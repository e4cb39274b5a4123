"""How fast shards can be read, decoded and handed over here, stage by stage and by number of workers."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vitlight.data.batches import ImageBatches
from vitlight.data.decode import crop_and_resize, decode_for_crop
from vitlight.data.loader import Requests, build_loader
from vitlight.data.plan import BatchRequest, DataPlan

__all__ = ["STAGES", "StageTimes", "measure_stages", "measure_transfer", "measure_workers", "verdict"]

STAGES = ("read", "decode", "crop", "augment", "collate")
_WARM_UP_BATCHES = 2  # of each worker


@dataclass(frozen=True)
class StageTimes:
    """seconds: of one core, in each of STAGES, for `num_images`."""

    seconds: dict[str, float]
    num_images: int
    encoded_bytes: int

    def per_image(self, stage: str) -> float:
        return self.seconds[stage] / self.num_images

    @property
    def images_per_second(self) -> float:
        """Of one core."""
        return self.num_images / sum(self.seconds.values())


def _requests(plan: DataPlan) -> Iterator[BatchRequest]:
    """One request after another, without end."""
    step = 0
    while True:
        yield plan.batch(step)
        step += 1


def measure_stages(batches: ImageBatches, plan: DataPlan, seconds: float) -> StageTimes:
    """Does a worker's work in this process for about so long, a stage at a time, whole batches."""
    assert batches.augmentation is not None
    augmentation, size, channels = batches.augmentation, batches.size, batches.channels
    total = dict.fromkeys(STAGES, 0.0)
    num_images = encoded_bytes = 0
    start = time.perf_counter()
    for request in _requests(plan):
        stamps = [time.perf_counter()]
        located, _, key_hash = batches.locate(request.ids)
        draws = augmentation.draws(batches.seed, request.epochs, key_hash, request.repeats).tolist()
        encoded = [sample.read() for sample in located]
        stamps.append(time.perf_counter())
        decoded = [
            decode_for_crop(image, channels, size, lambda h, w, row=row: augmentation.box(h, w, row))  # type: ignore[misc]
            for image, row in zip(encoded, draws, strict=True)
        ]
        stamps.append(time.perf_counter())
        crops = [crop_and_resize(pixels, box, size) for pixels, box in decoded]
        stamps.append(time.perf_counter())
        for i, (crop, row) in enumerate(zip(crops, draws, strict=True)):
            crops[i] = batches.augment(crop, row)
        stamps.append(time.perf_counter())
        images = torch.zeros(len(crops), size, size, channels, dtype=torch.uint8)
        for i, crop in enumerate(crops):
            images[i] = crop
        stamps.append(time.perf_counter())
        for stage, begin, end in zip(STAGES, stamps, stamps[1:], strict=False):
            total[stage] += end - begin
        num_images += len(located)
        encoded_bytes += sum(map(len, encoded))
        if time.perf_counter() - start >= seconds:
            return StageTimes(total, num_images, encoded_bytes)
    raise AssertionError("the plan has no end")


def measure_workers(batches: ImageBatches, plan: DataPlan, num_workers: int, seconds: float) -> float:
    """Images a second that a loader with so many workers hands over; the time they take to start is left out."""
    loader = build_loader(batches, Requests(1 << 40, lambda: _requests(plan)), num_workers)
    iterator = iter(loader)
    for _ in range(_WARM_UP_BATCHES * max(1, num_workers)):
        next(iterator)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or count == 0:
        count += len(next(iterator)["label"])
    del iterator
    return count / elapsed


def measure_transfer(batches: ImageBatches, batch_size: int, device: torch.device, repeats: int = 5) -> float:
    """Images a second to `device`, and there to normalised float32."""
    images = torch.zeros(batch_size, batches.size, batches.size, batches.channels, dtype=torch.uint8).permute(
        0, 3, 1, 2
    )
    if device.type == "cuda":
        images = images.pin_memory()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        images.to(device, non_blocking=True).float().mul_(1 / 255.0).sub_(0.5)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return batch_size / float(np.median(times))


def verdict(stages: StageTimes, by_workers: Sequence[tuple[int, float]], transfer: float, num_cores: int) -> str:
    """What limits, and what to set, in one line. by_workers: (workers, images a second)."""
    best = max(rate for _, rate in by_workers)
    # The fewest workers that come within 5 % of the best: more only take memory.
    workers, rate = next((w, r) for w, r in by_workers if r >= 0.95 * best)
    if transfer < rate:
        return (
            f"the transfer to the device limits ({transfer:,.0f} images/s; the loader gives {rate:,.0f}); "
            f"set data.num_workers={workers}"
        )
    slowest = max(STAGES, key=lambda stage: stages.seconds[stage])
    share = stages.seconds[slowest] / sum(stages.seconds.values())
    hint = {
        "read": "the storage limits; copy the shards to a faster disk, or raise data.num_workers",
        "decode": "smaller images (`vitlight data pack --short-side`) or more cores decode faster",
        "crop": "smaller images or more cores",
        "augment": "a cheaper data.augmentation.policy or more cores",
        "collate": "more cores",
    }[slowest]
    if workers == by_workers[-1][0] and workers < num_cores:
        hint = f"{num_cores - workers} more cores are free: try more workers"
    return f"{slowest} limits ({share:.0%} of a worker's time); set data.num_workers={workers}: {rate:,.0f} images/s; {hint}"

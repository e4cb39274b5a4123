"""How fast shards can be read, decoded and handed over here, stage by stage and by number of workers."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from vitlight.data.batches import ImageBatches
from vitlight.data.cache import ShardCache
from vitlight.data.decode import DecodeError, crop_and_resize, decode_for_crop
from vitlight.data.image_loader import Requests, build_loader
from vitlight.data.plan import BatchRequest, DataPlan
from vitlight.errors import InputError

__all__ = [
    "STAGES",
    "StageTimes",
    "endless_requests",
    "measure_fetch",
    "measure_stages",
    "measure_transfer",
    "measure_workers",
    "verdict",
]

STAGES = ("read", "decode", "crop", "augment", "collate")
_WARM_UP_BATCHES = 2  # of each worker
_BUSY_SHARE = 0.9  # with less of a core than this there is other work on the machine


@dataclass(frozen=True)
class StageTimes:
    """seconds: by the clock, in each of STAGES, for `num_images`. cpu_share: CPU time over these, without reading: what is
    missing to 1 was taken by other work on the machine."""

    seconds: dict[str, float]
    num_images: int
    encoded_bytes: int
    cpu_share: float

    def per_image(self, stage: str) -> float:
        return self.seconds[stage] / self.num_images

    @property
    def images_per_second(self) -> float:
        """Of one core."""
        return self.num_images / sum(self.seconds.values())


def endless_requests(plan: DataPlan) -> Iterator[BatchRequest]:
    """One request after another. What is measured goes on where the last measurement ended: an image that was just read
    would come from memory."""
    step = 0
    while True:
        yield plan.batch(step)
        step += 1


def measure_stages(batches: ImageBatches, requests: Iterator[BatchRequest], seconds: float) -> StageTimes:
    """Does a worker's work in this process for about so long, a stage at a time, whole batches.

    Raises InputError for an image that can't be decoded.
    """
    assert batches.augmentation is not None
    augmentation, size, channels = batches.augmentation, batches.size, batches.channels
    total = dict.fromkeys(STAGES, 0.0)
    num_images = encoded_bytes = 0
    cpu_seconds = 0.0
    batches[next(requests)]  # the first one imports, and maps the index
    start = time.perf_counter()
    for request in requests:
        stamps = [time.perf_counter()]
        located, _, key_hash = batches.locate(request.ids)
        draws = augmentation.draws(batches.seed, request.epochs, key_hash, request.repeats).tolist()
        encoded = [sample.read() for sample in located]
        stamps.append(time.perf_counter())
        cpu_seconds -= time.process_time()
        decoded = []
        for sample, image, row in zip(located, encoded, draws, strict=True):
            try:
                decoded.append(decode_for_crop(image, channels, size, partial(augmentation.box, draws=row)))
            except DecodeError as error:
                raise InputError(sample.fault(error)) from error
        stamps.append(time.perf_counter())
        crops = [crop_and_resize(pixels, box, size, augmentation.interpolation) for pixels, box in decoded]
        stamps.append(time.perf_counter())
        for i, (crop, row) in enumerate(zip(crops, draws, strict=True)):
            crops[i] = batches.augment(crop, row)
        stamps.append(time.perf_counter())
        images = torch.empty(len(crops), size, size, channels, dtype=torch.uint8)
        for i, crop in enumerate(crops):
            images[i] = crop
        stamps.append(time.perf_counter())
        cpu_seconds += time.process_time()
        for stage, begin, end in zip(STAGES, stamps, stamps[1:], strict=False):
            total[stage] += end - begin
        num_images += len(located)
        encoded_bytes += sum(map(len, encoded))
        if time.perf_counter() - start >= seconds:
            break
    cpu_share = cpu_seconds / (sum(total.values()) - total["read"])
    return StageTimes(total, num_images, encoded_bytes, cpu_share)


def measure_workers(
    batches: ImageBatches, requests: Iterator[BatchRequest], batch_size: int, num_workers: int, seconds: float
) -> float:
    """Images a second that a loader with so many workers hands over; the time they take to start is left out."""
    loader = build_loader(batches, Requests(1 << 40, lambda: requests), num_workers, batch_size)
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


def measure_fetch(cache: ShardCache, shards: Sequence[str]) -> float:
    """Bytes a second at which remote shards come, all of these at once, as a rank fetches them ahead."""
    start = time.perf_counter()
    with ThreadPoolExecutor(len(shards)) as pool:
        num_bytes = sum(path.stat().st_size for path in pool.map(cache.fetch, shards))
    return num_bytes / (time.perf_counter() - start)


def verdict(
    stages: StageTimes,
    by_workers: Mapping[int, float],
    transfer: float,
    num_cores: int,
    fetch: float | None = None,
) -> str:
    """What limits, and what to set, in one line.

    by_workers: images a second by number of workers; 0 is advised only where nothing else was tried, since training then
    waits for every batch. transfer, fetch: images a second to the device, and from where remote shards lie.
    """
    tried = {workers: rate for workers, rate in sorted(by_workers.items()) if workers} or dict(by_workers)
    best = max(tried.values())
    # The fewest workers that come within 5 % of the best: more only take memory.
    workers, rate = next((w, r) for w, r in tried.items() if r >= 0.95 * best)
    setting = f"data.num_workers={workers} for one rank on this machine"
    slowest = max(STAGES, key=lambda stage: stages.seconds[stage])
    share = stages.seconds[slowest] / sum(stages.seconds.values())
    hint = {
        "read": "the storage limits; copy the shards to a faster disk, or raise data.num_workers",
        "decode": "smaller images (`vitlight data pack --short-side`) or more cores decode faster",
        "crop": "smaller images or more cores",
        "augment": "a cheaper data.augmentation.policy or more cores",
        "collate": "more cores",
    }[slowest]
    if 0 < workers == max(tried) < num_cores:
        hint = f"{num_cores - workers} more cores are free: try more workers"
    if fetch is not None and fetch < min(rate, transfer):
        line = (
            f"fetching limits ({fetch:,.0f} images/s; the loader gives {rate:,.0f}); set {setting}, or "
            "copy the shards nearer"
        )
    elif transfer < rate:
        line = (
            f"the transfer to the device limits ({transfer:,.0f} images/s; the loader gives {rate:,.0f}); set {setting}"
        )
    else:
        line = f"{slowest} limits ({share:.0%} of a worker's time); set {setting}: {rate:,.0f} images/s; {hint}"
    if workers == 0:
        line += "; training waits for each batch without workers: try some"
    if stages.cpu_share < _BUSY_SHARE:
        line += (
            f"; other work took {1 - stages.cpu_share:.0%} of a core meanwhile: measure again when the machine is idle"
        )
    return line

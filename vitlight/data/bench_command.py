"""`vitlight data bench`: measures this machine on these shards and says what limits."""

import argparse
import json
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.data.verify_command import add_label_arguments, label_source
from vitlight.errors import InputError

if TYPE_CHECKING:
    from vitlight.data.cache import ShardCache

__all__ = ["add_bench_parser"]

_FETCHED_SHARDS = 4  # as many as a rank fetches at once


def add_bench_parser(actions: Any) -> None:
    text = "images a second by stage and by number of workers; what limits, and what to set"
    parser = actions.add_parser("bench", help=text, description=text)
    parser.set_defaults(handler=_bench)
    parser.add_argument("source", metavar="SHARDS", help="shards as for `vitlight data index`")
    parser.add_argument("--image-size", type=int, default=224, metavar="N", help="data.image_size (default: 224)")
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3), help="data.channels (default: 3)")
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="images of a rank's batch (default: 64)"
    )
    parser.add_argument("--policy", default="none", metavar="NAME", help="data.augmentation.policy (default: none)")
    parser.add_argument(
        "--workers", metavar="N,N", help="data.num_workers to try (default: 1, 2, 4 ... up to the cores)"
    )
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="of each measurement (default: 4)")
    parser.add_argument("--index-dir", type=Path, metavar="DIR", help="where the index is (default: with the shards)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_label_arguments(parser)


def _worker_counts(text: str | None, num_cores: int) -> list[int]:
    if text is None:
        counts = [*(1 << i for i in range(num_cores.bit_length())), num_cores]
    else:
        try:
            counts = [int(part) for part in text.split(",")]
        except ValueError:
            counts = [-1]
        if min(counts) < 0:
            raise InputError(f"--workers={text} is not a list of numbers from 0 on, such as 1,2,4")
    return sorted(set(counts))


def _bench(args: argparse.Namespace) -> int:
    for name in ("image_size", "batch_size", "seconds"):
        value = getattr(args, name)
        if not (value > 0 and math.isfinite(value)):
            raise InputError(f"--{name.replace('_', '-')}={value} is not a positive number")
    num_cores = len(os.sched_getaffinity(0))
    counts = _worker_counts(args.workers, num_cores)
    from vitlight.data.sources import default_cache_dir, is_remote, resolve_shards

    shards = resolve_shards(args.source)
    remote = [shard for shard in shards if is_remote(shard)][:_FETCHED_SHARDS]
    if not remote:
        report = _measure(args, args.source, args.index_dir, None, counts, num_cores)
    else:
        from vitlight.data.bench import measure_fetch
        from vitlight.data.cache import ShardCache

        # In a cache of their own: one that has them already would tell nothing.
        default_cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=default_cache_dir()) as folder:
            cache = ShardCache(Path(folder) / "shards", None)
            bytes_per_second = measure_fetch(cache, remote)
            report = _measure(args, remote, Path(folder) / "index", cache, counts, num_cores, bytes_per_second)
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)
    return 0


def _measure(
    args: argparse.Namespace,
    source: str | list[str],
    index_dir: Path | None,
    cache: "ShardCache | None",
    counts: list[int],
    num_cores: int,
    fetched_bytes_per_second: float | None = None,
) -> dict[str, Any]:
    import torch

    from vitlight.data.augment import Augmentation
    from vitlight.data.batches import ImageBatches, ImageSource
    from vitlight.data.bench import (
        STAGES,
        endless_requests,
        measure_stages,
        measure_transfer,
        measure_workers,
        verdict,
    )
    from vitlight.data.store import open_store
    from vitlight.data.subset import SubsetRule
    from vitlight.data.training_set import IndexOptions, open_training_set

    torch.set_num_threads(1)
    options = IndexOptions(label_source(args), args.image_part, index_dir, cache)
    training = open_training_set(source, options, SubsetRule(), seed=0, global_batch_size=args.batch_size)
    (index,) = training.indexes
    batches = ImageBatches(
        [ImageSource(index, open_store(index.shards, index.num_bytes, index.shard_digests, cache))],
        size=args.image_size,
        channels=args.channels,
        seed=0,
        augmentation=Augmentation(policy=args.policy),
        eval_crop=1.0,
    )
    requests = endless_requests(training.plan)
    stages = measure_stages(batches, requests, args.seconds)
    by_workers = dict.fromkeys(counts, 0.0)
    # Twice, in turn, and the better one counts: what else the machine does can only make it slower.
    for workers in (*counts, *counts):
        rate = measure_workers(batches, requests, args.batch_size, workers, args.seconds / 2)
        by_workers[workers] = max(rate, by_workers[workers])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transfer = measure_transfer(batches, args.batch_size, device)
    fetch = None
    if fetched_bytes_per_second is not None:
        fetch = fetched_bytes_per_second * len(index) / float(index.num_bytes.sum())
    return {
        "num_samples": len(index),
        "num_cores": num_cores,
        "encoded_bytes_per_image": stages.encoded_bytes / stages.num_images,
        "microseconds_per_image": {stage: stages.per_image(stage) * 1e6 for stage in STAGES},
        "images_per_second_of_a_core": stages.images_per_second,
        "cpu_share": stages.cpu_share,
        "images_per_second_by_workers": by_workers,
        "images_per_second_to_device": transfer,
        "device": str(device),
        "images_per_second_fetched": fetch,
        "verdict": verdict(stages, by_workers, transfer, num_cores, fetch),
    }


def _print(report: dict[str, Any]) -> None:
    kilobytes = report["encoded_bytes_per_image"] / 1e3
    print(f"{report['num_samples']:,} images of {kilobytes:,.1f} kB, {report['num_cores']} cores")
    print("\nstage      us/image  images/s of a core")
    for stage, microseconds in report["microseconds_per_image"].items():
        print(f"{stage:10} {microseconds:8,.0f}  {1e6 / microseconds:18,.0f}")
    rate = report["images_per_second_of_a_core"]
    print(f"{'all':10} {1e6 / rate:8,.0f}  {rate:18,.0f}")
    print("\nworkers  images/s")
    for workers, rate in report["images_per_second_by_workers"].items():
        print(f"{workers:7}  {rate:8,.0f}")
    fetched = report["images_per_second_fetched"]
    if fetched is not None:
        print(f"\nfetched from where they lie: {fetched:,.0f} images/s")
    print(f"\nto {report['device']}, normalised: {report['images_per_second_to_device']:,.0f} images/s")
    print(report["verdict"])

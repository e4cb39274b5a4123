"""`vitlight data bench`: measures this machine on these shards and says what limits."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from vitlight.data.verify_command import add_label_arguments, label_source
from vitlight.errors import InputError

__all__ = ["add_bench_parser"]


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
        "--workers", metavar="N,N", help="data.num_workers to try (default: 0, 1, 2, 4 ... up to the cores)"
    )
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="of each measurement (default: 4)")
    parser.add_argument("--index-dir", type=Path, metavar="DIR", help="where the index is (default: with the shards)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_label_arguments(parser)


def _worker_counts(text: str | None, num_cores: int) -> list[int]:
    if text is None:
        counts = [0, *(1 << i for i in range(num_cores.bit_length()) if 1 << i <= num_cores), num_cores]
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
        if not getattr(args, name) > 0:
            raise InputError(f"--{name.replace('_', '-')}={getattr(args, name)} is not above 0")
    num_cores = len(os.sched_getaffinity(0))
    counts = _worker_counts(args.workers, num_cores)

    import torch

    from vitlight.data.augment import Augmentation
    from vitlight.data.batches import ImageBatches, ImageSource
    from vitlight.data.bench import STAGES, measure_stages, measure_transfer, measure_workers, verdict
    from vitlight.data.cache import ShardCache
    from vitlight.data.sources import default_cache_dir
    from vitlight.data.store import open_store
    from vitlight.data.subset import SubsetRule
    from vitlight.data.training_set import IndexOptions, open_training_set

    torch.set_num_threads(1)
    cache = ShardCache(default_cache_dir() / "shards", None)
    options = IndexOptions(label_source(args), args.image_part, args.index_dir, cache)
    training = open_training_set(args.source, options, SubsetRule(), seed=0, global_batch_size=args.batch_size)
    batches = ImageBatches(
        [ImageSource(i, open_store(i.shards, i.num_bytes, i.shard_digests, cache)) for i in training.indexes],
        size=args.image_size,
        channels=args.channels,
        seed=0,
        augmentation=Augmentation(policy=args.policy),
        eval_crop=1.0,
    )
    stages = measure_stages(batches, training.plan, args.seconds)
    by_workers = [(n, measure_workers(batches, training.plan, n, args.seconds)) for n in counts]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transfer = measure_transfer(batches, args.batch_size, device)
    line = verdict(stages, by_workers, transfer, num_cores)
    if args.json:
        report = {
            "microseconds_per_image": {stage: stages.per_image(stage) * 1e6 for stage in STAGES},
            "encoded_bytes_per_image": stages.encoded_bytes / stages.num_images,
            "images_per_second_of_a_core": stages.images_per_second,
            "images_per_second_by_workers": dict(by_workers),
            "images_per_second_to_device": transfer,
            "device": str(device),
            "num_cores": num_cores,
            "verdict": line,
        }
        print(json.dumps(report))
        return 0
    print(
        f"{len(training.indexes[0]):,} images of {stages.encoded_bytes / stages.num_images / 1e3:,.1f} kB, {num_cores} cores"
    )
    print("\nstage      us/image  images/s of a core")
    for stage in STAGES:
        print(f"{stage:10} {stages.per_image(stage) * 1e6:8,.0f}  {1 / stages.per_image(stage):18,.0f}")
    print(f"{'all':10} {1e6 / stages.images_per_second:8,.0f}  {stages.images_per_second:18,.0f}")
    print("\nworkers  images/s")
    for workers, rate in by_workers:
        print(f"{workers:7}  {rate:8,.0f}")
    print(f"\nto {device}, normalised: {transfer:,.0f} images/s\n{line}")
    return 0

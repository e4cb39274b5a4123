"""`vitlight data plan`: what a run would see, in numbers or key by key."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.data.verify_command import add_label_arguments, label_source
from vitlight.errors import InputError

if TYPE_CHECKING:
    from vitlight.data.training_set import TrainingSet

__all__ = ["add_plan_parser"]


@dataclass(frozen=True)
class _Settings:
    """Those settings of `data` that decide what a run sees; the defaults are a plain pass over everything."""

    global_batch_size: int = 1024
    seed: int = 0
    num_train_samples: int | None = None
    train_fraction: float | None = None
    num_train_samples_per_class: int | None = None
    long_tail_ratio: float | None = None
    subset_seed: int = 0
    val_fraction: float = 0.0
    window_shards: int = 64
    num_streams: int = 64
    num_repeats: int = 1


def add_plan_parser(actions: Any) -> None:
    text = "what a run would see: steps, samples, bytes; or, key by key, what any rank draws"
    parser = actions.add_parser("plan", help=text, description=text)
    parser.set_defaults(handler=_plan)
    parser.add_argument(
        "source", metavar="SHARDS", help="shards, or a run's experiment.yaml, whose settings of `data` are then taken"
    )
    for field in fields(_Settings):
        kind = float if "float" in str(field.type) else int
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, metavar="N", help=f"data.{field.name} ({field.default})"
        )
    parser.add_argument("--epochs", type=float, default=1.0, metavar="N", help="length of the run (default: 1)")
    parser.add_argument("--ranks", type=int, default=1, metavar="R", help="number of ranks (default: 1)")
    parser.add_argument("--accumulate", type=int, default=1, metavar="N", help="accumulated batches (default: 1)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="workers of each rank (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON; with --keys one object a line")
    parser.add_argument("--index-dir", type=Path, metavar="DIR", help="where the index is (default: with the shards)")
    keys = parser.add_argument_group("the draws of one rank, in order")
    keys.add_argument("--keys", action="store_true", help="print the key of each image drawn")
    keys.add_argument("--rank", type=int, default=0, metavar="r", help="from 0 (default: 0)")
    keys.add_argument("--epoch", type=int, default=0, metavar="E", help="draws of this epoch (default: 0)")
    keys.add_argument("--start-batch", type=int, default=0, metavar="B", help="from its global batch B on (default: 0)")
    keys.add_argument("--step", type=int, metavar="S", help="instead: from optimizer step S on, whatever the epoch")
    keys.add_argument(
        "--num-batches", type=int, metavar="N", help="so many global batches (default: to the epoch's end)"
    )
    add_label_arguments(parser)


def _plan(args: argparse.Namespace) -> int:
    for name, least in (("ranks", 1), ("accumulate", 1), ("workers", 0), ("epoch", 0), ("start_batch", 0), ("step", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')}={value} is not at least {least}")
    if not 0 <= args.rank < args.ranks:
        raise InputError(f"--rank={args.rank} is not in 0 to {args.ranks - 1}: --ranks={args.ranks}")
    if args.step is not None and args.num_batches is None:
        raise InputError("--step needs --num-batches: the stream of draws has no end")
    training, settings = _open(args)
    training.plan.micro_batch_size(args.ranks, args.accumulate)
    if args.keys:
        for draw in _draws(training, args):
            print(json.dumps(draw) if args.json else draw["key"])
        return 0
    summary = _summary(training, settings, args)
    if args.json:
        print(json.dumps(summary))
    else:
        width = max(map(len, summary))
        for name, value in summary.items():
            print(f"{name:{width}}  {f'{value:,}' if isinstance(value, int) else value}")
    return 0


def _open(args: argparse.Namespace) -> tuple["TrainingSet", _Settings]:
    from vitlight.data.cache import ShardCache
    from vitlight.data.labels import LabelSource
    from vitlight.data.sources import default_cache_dir
    from vitlight.data.subset import SubsetRule
    from vitlight.data.training_set import IndexOptions, open_training_set

    names = [field.name for field in fields(_Settings)]
    given: dict[str, Any] = {name: value for name in names if (value := getattr(args, name)) is not None}
    source, labels, image_part, index_dir = args.source, label_source(args), args.image_part, args.index_dir
    if args.source.endswith((".yaml", ".yml")):
        recorded = _recorded(Path(args.source))
        source, image_part = recorded["train"], recorded.get("image_part")
        labels = LabelSource(**recorded.get("labels", {}))
        index_dir = index_dir or (Path(recorded["index_dir"]) if recorded.get("index_dir") else None)
        given = {**{name: recorded[name] for name in names if name in recorded}, **given}
    settings = _Settings(**given)
    rule = SubsetRule(
        val_fraction=settings.val_fraction,
        num_samples=settings.num_train_samples,
        fraction=settings.train_fraction,
        samples_per_class=settings.num_train_samples_per_class,
        long_tail_ratio=settings.long_tail_ratio,
        seed=settings.subset_seed,
    )
    training = open_training_set(
        source,
        IndexOptions(labels, image_part, index_dir, ShardCache(default_cache_dir() / "shards", None)),
        rule,
        seed=settings.seed,
        global_batch_size=settings.global_batch_size,
        window_shards=settings.window_shards,
        num_streams=settings.num_streams,
        num_repeats=settings.num_repeats,
    )
    return training, settings


def _recorded(path: Path) -> dict[str, Any]:
    """The settings of `data` in a run's experiment.yaml, with its seed."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: can't read this experiment: {str(error).splitlines()[0]}") from error
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, dict) or "train" not in data:
        raise InputError(f"{path}: no `data.train` in it; give shards, or the experiment.yaml of a run")
    return {**data, "seed": content.get("seed_everything", 0)}


def _draws(training: "TrainingSet", args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What the rank draws: in optimizer order, micro-batch by micro-batch."""
    import numpy as np

    plan, indexes = training.plan, training.indexes
    size, length = plan.global_batch_size, plan.num_samples * plan.num_repeats
    first, last, epoch = args.step, None, None
    if args.step is None:
        first = args.epoch * length // size + args.start_batch
        last = -(-(args.epoch + 1) * length // size)
        # With several sources, each has epochs of its own.
        epoch = args.epoch if len(indexes) == 1 else None
    if args.num_batches is not None:
        last = first + args.num_batches if last is None else min(last, first + args.num_batches)
    assert last is not None
    first_id = np.cumsum([0, *(len(index) for index in indexes)])
    requests = plan.micro_batches(first, max(first, last), args.rank, args.ranks, args.accumulate)
    for request in requests:
        sources = (np.searchsorted(first_id, request.ids, side="right") - 1).tolist()
        for i, s, drawn in zip(request.ids.tolist(), sources, request.epochs.tolist(), strict=True):
            if epoch is not None and drawn != epoch:
                continue
            index, row = indexes[s], i - int(first_id[s])
            key = index.key(row).encode(errors="surrogateescape").decode(errors="backslashreplace")
            shard = index.shards[int(index.shard_of(np.array([row]))[0])]
            yield {"step": request.step, "epoch": drawn, "shard": shard, "label": int(index.label[row]), "key": key}


def _summary(training: "TrainingSet", settings: _Settings, args: argparse.Namespace) -> dict[str, Any]:
    plan = training.plan
    size = plan.global_batch_size
    steps = -(-int(args.epochs * plan.num_samples) // size)
    micro = plan.micro_batch_size(args.ranks, args.accumulate)
    micro_batches = steps * args.accumulate
    per_epoch = sum(_num_bytes(training, s) for s in range(len(training.indexes)))
    at_once = sum(order.shards_at_once for order in plan.orders)
    means = [float(index.num_bytes.mean()) for index in training.indexes]
    at_once_bytes = int(sum(o.shards_at_once * m for o, m in zip(plan.orders, means, strict=True)))
    return {
        "images": sum(len(index) for index in training.indexes),
        "shards": sum(len(index.shards) for index in training.indexes),
        "classes": max(index.num_classes for index in training.indexes),
        "held out (val)": len(training.val_ids),
        "trained on": plan.num_samples,
        "epochs": args.epochs,
        "optimizer steps": steps,
        "samples seen": steps * size,
        "unique images": plan.unique_samples_seen(steps * size),
        "global batch": size,
        "ranks": args.ranks,
        "samples of a rank": steps * size // args.ranks,
        "batch of a rank": micro,
        "workers of a rank": args.workers,
        "batches of a worker": _share(micro_batches, args.workers),
        "image bytes of an epoch": per_epoch,
        "image bytes of a rank": int(per_epoch / plan.num_samples * steps * size / args.ranks),
        "shards read at once": at_once,
        "their bytes": at_once_bytes,
        "plan": plan.digest,
        "data": training.digest,
        "seed": settings.seed,
    }


def _share(batches: int, workers: int) -> str:
    """Batches go to the workers in turn."""
    least, most = batches // max(workers, 1), -(-batches // max(workers, 1))
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _num_bytes(training: "TrainingSet", s: int) -> int:
    """Bytes of the images that source s is trained on."""
    import numpy as np

    index, rows = training.indexes[s], training.plan.sources[s].rows
    if int(rows.counts.sum()) == len(index):
        return int(index.size.sum(dtype=np.uint64))
    shards = np.flatnonzero(rows.counts).tolist()
    return sum(int(index.size[rows.of_shard(shard)].sum(dtype=np.uint64)) for shard in shards)

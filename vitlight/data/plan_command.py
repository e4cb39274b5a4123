"""`vitlight data plan`: what a run would see, in numbers or key by key."""

import argparse
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.data.verify_command import add_label_arguments, label_source
from vitlight.errors import InputError

if TYPE_CHECKING:
    from vitlight.data.cache import ShardCache
    from vitlight.data.training_set import TrainingSet

__all__ = ["add_plan_parser"]

_OF_KEYS = ("rank", "epoch", "start_batch", "step", "num_batches")


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


@dataclass(frozen=True)
class _Run:
    """What is planned: the data, and the settings beside `data` that a run's experiment.yaml holds.

    duration: of `model.duration`; num_micro: `trainer.accumulate_grad_batches`; num_workers: `data.num_workers`.
    """

    training: "TrainingSet"
    duration: dict[str, Any]
    num_micro: int
    num_workers: int


def add_plan_parser(actions: Any) -> None:
    text = "what a run would see: steps, samples, bytes; or, key by key, what any rank draws"
    parser = actions.add_parser("plan", help=text, description=text)
    parser.set_defaults(handler=_plan)
    parser.add_argument(
        "source", metavar="SHARDS", help="shards, or a run's experiment.yaml, whose settings hold unless given here"
    )
    for field in fields(_Settings):
        kind = float if "float" in str(field.type) else int
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, metavar="N", help=f"data.{field.name} ({field.default})"
        )
    parser.add_argument("--epochs", type=float, metavar="N", help="length of the run (default: 1)")
    parser.add_argument("--ranks", type=int, default=1, metavar="R", help="number of ranks (default: 1)")
    parser.add_argument("--accumulate", type=int, metavar="N", help="accumulated batches (default: 1)")
    parser.add_argument("--workers", type=int, metavar="N", help="workers of each rank (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON; with --keys one object a line")
    parser.add_argument("--index-dir", type=Path, metavar="DIR", help="where the index is (default: with the shards)")
    keys = parser.add_argument_group("the draws of one rank, in order")
    keys.add_argument("--keys", action="store_true", help="print the key of each image drawn")
    keys.add_argument("--rank", type=int, metavar="r", help="from 0 (default: 0)")
    keys.add_argument(
        "--epoch",
        type=int,
        metavar="E",
        help="draws of this epoch (default: 0); with several sources, its global batches",
    )
    keys.add_argument("--start-batch", type=int, metavar="B", help="from its global batch B on (default: 0)")
    keys.add_argument("--step", type=int, metavar="S", help="instead: from optimizer step S on, whatever the epoch")
    keys.add_argument(
        "--num-batches", type=int, metavar="N", help="so many global batches (default: to the epoch's end)"
    )
    add_label_arguments(parser)


def _plan(args: argparse.Namespace) -> int:
    _check(args)
    run = _open(args)
    from vitlight.data.plan_view import list_draws, summarise

    run.training.plan.micro_batch_size(args.ranks, run.num_micro)
    if args.keys:
        first, last, epoch = _steps_listed(args, run.training)
        draws = list_draws(
            run.training, first, last, rank=args.rank or 0, num_ranks=args.ranks, num_micro=run.num_micro, epoch=epoch
        )
        for draw in draws:
            print(json.dumps(draw) if args.json else draw["key"])
        return 0
    summary = summarise(
        run.training,
        _count_steps(run, args),
        num_ranks=args.ranks,
        num_micro=run.num_micro,
        num_workers=run.num_workers,
    )
    if args.json:
        print(json.dumps(summary))
    else:
        width = max(map(len, summary))
        for name, value in summary.items():
            print(f"{name:{width}}  {_shown(value)}")
    return 0


def _steps_listed(args: argparse.Namespace, training: "TrainingSet") -> tuple[int, int, int | None]:
    """The first step to list, the last + 1, and the epoch whose draws alone are listed."""
    if args.step is not None:
        return args.step, args.step + args.num_batches, None
    plan, epoch, begin = training.plan, args.epoch or 0, args.start_batch or 0
    size, length = plan.global_batch_size, plan.num_samples * plan.num_repeats
    first, last = epoch * length // size, -(-(epoch + 1) * length // size)
    if first + begin >= last:
        raise InputError(
            f"--start-batch={begin} is not in 0 to {last - first - 1}, the global batches of epoch {epoch}"
        )
    if args.num_batches is not None:
        last = min(last, first + begin + args.num_batches)
    return first + begin, last, epoch if len(training.indexes) == 1 else None


def _count_steps(run: _Run, args: argparse.Namespace) -> int:
    """As a run's `model.duration` becomes steps."""
    from vitlight.data.plan import count_steps

    duration, plan = run.duration, run.training.plan
    if duration.get("epochs") is not None:
        samples = duration["epochs"] * plan.num_samples
    elif duration.get("samples") is not None:
        samples = duration["samples"]
    else:
        raise InputError(f"{args.source}: model.duration.train_flops needs the model to become steps; give --epochs")
    return count_steps(max(samples, duration.get("min_samples") or 0), plan.global_batch_size)


def _check(args: argparse.Namespace) -> None:
    least = {"ranks": 1, "accumulate": 1, "workers": 0, "epoch": 0, "start_batch": 0, "step": 0, "num_batches": 1}
    for name, bound in least.items():
        value = getattr(args, name)
        if value is not None and value < bound:
            raise InputError(f"--{name.replace('_', '-')}={value} is not at least {bound}")
    if args.epochs is not None and not (args.epochs > 0 and math.isfinite(args.epochs)):
        raise InputError(f"--epochs={args.epochs} is not a positive number")
    given = [name for name in _OF_KEYS if getattr(args, name) is not None]
    if given and not args.keys:
        raise InputError(f"--{given[0].replace('_', '-')}={getattr(args, given[0])} needs --keys")
    if args.keys and args.epochs is not None:
        raise InputError(f"--epochs={args.epochs} says nothing about --keys; use --epoch or --num-batches")
    if args.rank is not None and not 0 <= args.rank < args.ranks:
        raise InputError(f"--rank={args.rank} is not in 0 to {args.ranks - 1}: --ranks={args.ranks}")
    if args.step is not None:
        if args.epoch is not None or args.start_batch is not None:
            raise InputError(f"--step={args.step} stands for --epoch and --start-batch; give one or the other")
        if args.num_batches is None:
            raise InputError("--step needs --num-batches: the stream of draws has no end")


def _open(args: argparse.Namespace) -> _Run:
    from vitlight.data.labels import LabelSource
    from vitlight.data.subset import SubsetRule
    from vitlight.data.training_set import IndexOptions, open_training_set

    names = [field.name for field in fields(_Settings)]
    given: dict[str, Any] = {name: value for name in names if (value := getattr(args, name)) is not None}
    source, index_dir, cache = args.source, args.index_dir, None
    labels, image_part = label_source(args), args.image_part
    duration: dict[str, Any] = {"epochs": 1.0}
    num_micro, num_workers = args.accumulate or 1, args.workers or 0
    if args.source.endswith((".yaml", ".yml")):
        if labels != LabelSource() or image_part is not None:
            raise InputError(
                f"{args.source} says itself where labels and images are; give these options with shards only"
            )
        recorded = _recorded(Path(args.source))
        data = recorded["data"]
        absent = [name for name in names if name not in data and name not in given]
        if absent:
            raise InputError(
                f"{args.source}: no `data.{absent[0]}` in it; give the experiment.yaml of a run, which has all, or "
                f"--{absent[0].replace('_', '-')}"
            )
        given = {**{name: data[name] for name in names if name in data}, **given}
        source, labels, image_part = data["train"], LabelSource(**data.get("labels", {})), data.get("image_part")
        index_dir = index_dir or (Path(data["index_dir"]) if data.get("index_dir") else None)
        cache = _cache(data)
        duration = recorded.get("model", {}).get("duration", duration)
        num_micro = args.accumulate or recorded.get("trainer", {}).get("accumulate_grad_batches", 1)
        num_workers = data.get("num_workers", 0) if args.workers is None else args.workers
    if args.epochs is not None:
        duration = {"epochs": args.epochs}
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
        IndexOptions(labels, image_part, index_dir, cache),
        rule,
        seed=settings.seed,
        global_batch_size=settings.global_batch_size,
        window_shards=settings.window_shards,
        num_streams=settings.num_streams,
        num_repeats=settings.num_repeats,
    )
    return _Run(training, duration, num_micro, num_workers)


def _recorded(path: Path) -> dict[str, Any]:
    """A run's experiment.yaml, with its seed in `data`."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: can't read this experiment: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: can't read this experiment: {' '.join(str(error).split())}") from error
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, dict) or not isinstance(data.get("train"), (str, list, dict)):
        raise InputError(f"{path}: no `data.train` in it; give shards, or the experiment.yaml of a run")
    return {**content, "data": {**data, "seed": content.get("seed_everything", 0)}}


def _cache(data: dict[str, Any]) -> "ShardCache | None":
    """Where the run keeps remote shards; None: the default of load_index."""
    from vitlight.data.cache import ShardCache

    folder, gib = data.get("cache_dir"), data.get("cache_gib")
    return ShardCache(Path(folder) / "shards", int(gib * 2**30)) if folder and gib else None


def _shown(value: Any) -> str:
    if isinstance(value, list):
        least, most = value
        return f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)

"""`vitlight probe`: the parser, built with argparse alone, and what it calls."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.commands.model_arguments import add_model_arguments, load_from_arguments
from vitlight.errors import InputError
from vitlight.messages import say

if TYPE_CHECKING:
    from vitlight.training.probing import Report

__all__ = ["add_probe_parser"]

# Arguments of the data that make sense here, by their names in `fit`.
_DATA: dict[str, tuple[type, str]] = {
    "train": (str, "shards to fit classifiers to, in place of the run's own; then what follows describes them"),
    "test": (str, "shards to report on (without: `val`, which is held out of --data.train)"),
    "val_fraction": (float, "part of --data.train that is held out as `val` (default: the run's; of other shards 0.1)"),
    "num_classes": (int, "classes of --data.train (default: as its index says)"),
    "labels.field": (str, "field of the .json part that holds the label"),
    "labels.part": (str, "part that holds the label: cls, json or txt"),
    "labels.class_file": (str, "names of the classes, one a line"),
    "image_part": (str, "extension of the image's part"),
    "eval_batch_size": (int, "images of a batch on one rank"),
    "num_workers": (int, "decoding processes of each rank"),
    "index_dir": (str, "where the shards' indexes are kept"),
    "cache_dir": (str, "where remote shards are kept"),
    "cache_gib": (float, "bound of that cache"),
}


def add_probe_parser(subparsers: Any) -> None:
    """Add `probe` to argparse `subparsers`; the handler, Namespace -> exit code, is left in `args.handler`."""
    text = "what a model's features are worth as they are: few-shot ridge regression, nearest neighbours, linear probes"
    parser = subparsers.add_parser("probe", help=text, description=text)
    add_model_arguments(parser)
    parser.add_argument(
        "--shots", default="1,5,10,25", metavar="K,...", help="images a class (default: 1,5,10,25), or none"
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="few-shot subsets of each size (default: 5)")
    parser.add_argument(
        "--knn", default="none", metavar="K,...", help="nearest neighbours, such as 10,20 (default: none)"
    )
    parser.add_argument("--linear", action="store_true", help="linear classifiers on all training images")
    parser.add_argument(
        "--l2", type=float, default=1024.0, metavar="X", help="penalty of ridge regression where none is chosen (1024)"
    )
    parser.add_argument("--name", help="what to call --data.train in tables (default: its folder's name)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where it is kept (default: probe.json in the run)")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object in place of the table")
    parser.add_argument("--device", default="auto", metavar="KIND", help="cpu, cuda, mps or auto (default: auto)")
    parser.add_argument("--devices", type=int, metavar="N", help="how many of them (default: 1)")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="(default: 32-true)")
    parser.add_argument(
        "--feature-dtype",
        choices=("float32", "float16"),
        default="float32",
        help="how features are kept in memory (default: float32)",
    )
    group = parser.add_argument_group("images", "without any of these the run's own, all of its training images")
    for name, (kind, what) in _DATA.items():
        group.add_argument(f"--data.{name}", type=kind, metavar=name.rpartition(".")[2].upper(), help=what)
    parser.set_defaults(handler=_probe)


def _probe(args: argparse.Namespace) -> int:
    numbers = {name: _numbers(f"--{name}", getattr(args, name)) for name in ("shots", "knn")}
    given = _data_settings(args)
    if args.name is not None and "train" not in given:
        raise InputError(f"--name={args.name} names the images of --data.train, and there is none; leave it out")
    if args.devices is not None and args.devices < 1:
        raise InputError(f"--devices={args.devices} is not at least 1")
    import torch

    from vitlight.evaluation.probe import Probes
    from vitlight.training.probing import PROBE_FILE, Devices, keep, measure, open_images

    probes = Probes(numbers["shots"], args.seeds, numbers["knn"], args.linear, args.l2)
    trained = load_from_arguments(args)
    data = open_images(trained, given)
    devices = Devices(args.device, args.devices, args.precision)
    report = measure(trained, data, probes, devices, getattr(torch, args.feature_dtype))
    if report is None:
        return 0
    path = args.output or (trained.run / PROBE_FILE if trained.run is not None else None)
    if path is not None:
        name = "" if "train" not in given else args.name or _folder_name(given["train"])
        keep(report, path, name)
    if args.json:
        print(json.dumps({**report.facts, "scores": [score.as_record() for score in report.scores]}, indent=1))
    else:
        _show(report)
    if path is not None:
        say(f"kept in {path}")
    return 0


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    if text.strip().lower() in ("none", ""):
        return ()
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise InputError(f"{flag}={text} is not whole numbers with commas between them, such as 5,10") from None


def _data_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of the data, as arguments of ShardedImages; those of `labels` in a dict of their own."""
    given: dict[str, Any] = {}
    for name in _DATA:
        value = getattr(args, f"data.{name}")
        if value is not None:
            group, dot, leaf = name.rpartition(".")
            (given.setdefault(group, {}) if dot else given)[leaf] = value
    return given


def _folder_name(shards: str) -> str:
    """`cifar10` of data/cifar10/train and of data/cifar10/train/{000..009}.tar."""
    *folders, last = shards.rstrip("/").split("/")
    words = [*folders, last.removesuffix(".tar")]
    plain = [word for word in words if word not in ("", ".", "..", "train") and not set(word) & set("{}*?[]:")]
    return plain[-1] if plain else "other"


def _show(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table

    facts = report.facts
    held_out = f", {facts['num_val']:,} held out as val" if facts["num_val"] else ""
    caption = (
        f"{facts['split']} top-1 of {report.scores[0].num_images:,} images, {facts['num_classes']} classes{held_out}; "
        f"{facts['feature_width']:,} features an image; ± is the standard deviation over subsets"
    )
    table = Table(title=facts["source"], title_justify="left", caption=caption, caption_justify="left")
    for column, justify in (("probe", "left"), ("setting", "left"), ("fitted to", "right"), ("top-1", "right")):
        table.add_column(column, justify="left" if justify == "left" else "right", overflow="fold")
    table.add_column("±", justify="right")
    table.add_column("subsets", justify="right")
    for score in report.scores:
        spread = "" if score.top1_std is None else f"{100 * score.top1_std:.2f}"
        several = "" if score.top1_std is None else str(len(score.num_correct))
        table.add_row(score.column, score.setting, f"{score.num_train:,}", f"{100 * score.top1:.2f} %", spread, several)
    console = Console()
    if not console.is_terminal:  # in a pipe as wide as it needs to be, so that no value is cut
        console = Console(
            width=max(80, console.measure(table, options=console.options.update(max_width=10_000)).maximum)
        )
    console.print(table)

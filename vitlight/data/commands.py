"""`vitlight data pack | index | synth`: the parsers, built with argparse alone, and what they call."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError

if TYPE_CHECKING:
    from vitlight.data.index import ShardIndex

__all__ = ["add_data_parser"]


def add_data_parser(subparsers: Any) -> None:
    """Add `data` to argparse `subparsers`; the chosen handler, Namespace -> exit code, is left in `args.handler`."""
    data = subparsers.add_parser("data", help="pack, index and generate WebDataset shards")
    actions = data.add_subparsers(dest="action", required=True, metavar="pack | index | synth")

    pack = _add(actions, "pack", _pack, "images on disk -> WebDataset shards, indexed")
    pack.add_argument("source", type=Path, metavar="SOURCE", help="a folder of class folders, or of IDX files")
    pack.add_argument("destination", type=Path, metavar="DESTINATION", help="gets train/ and test/, or the shards")
    pack.add_argument("--samples-per-shard", type=int, metavar="N", help="images of one shard")
    pack.add_argument("--classes", metavar="NAMES", help="class names of IDX files: a,b,c or a file with one a line")
    pack.add_argument("--overwrite", action="store_true", help="replace shards that vitlight wrote there before")

    index = _add(actions, "index", _index, "index shards, whoever wrote them, and say what they hold")
    index.add_argument("source", metavar="SHARDS", help="a folder of tars, a glob, a brace pattern, or one tar")
    index.add_argument(
        "--index-dir", type=Path, metavar="DIR", help="where to keep the index (default: with the shards)"
    )
    index.add_argument("--processes", type=int, metavar="N", help="processes (default: one for each 64 shards)")

    synth = _add(actions, "synth", _synth, "generated images of adjustable difficulty, any number, nothing downloaded")
    synth.add_argument("destination", type=Path, metavar="DESTINATION", help="gets train/ and test/")
    synth.add_argument("--num-train", type=int, default=20_000, metavar="N", help="training images (default: 20,000)")
    synth.add_argument("--num-test", type=int, default=2_000, metavar="N", help="test images (default: 2,000)")
    synth.add_argument("--image-size", type=int, default=32, metavar="N", help="pixels of a side (default: 32)")
    synth.add_argument("--num-classes", type=int, default=10, metavar="N", help="classes (default: 10)")
    synth.add_argument(
        "--difficulty", type=float, metavar="D", help="from 0 to 1 (default: tuned, see docs/synthetic.md)"
    )
    synth.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another world (default: 0)")
    synth.add_argument("--samples-per-shard", type=int, metavar="N", help="images of one shard")
    synth.add_argument("--overwrite", action="store_true", help="replace shards that vitlight wrote there before")


def _add(actions: Any, name: str, handler: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
    parser.set_defaults(handler=handler)
    return parser


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; the callee's defaults stand for the others."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _describe(indexes: "dict[str, ShardIndex]") -> None:
    for name, index in indexes.items():
        folder = index.shards[0].parent
        megabytes = sum(path.stat().st_size for path in index.shards) / 1e6
        print(
            f"{name}: {len(index):,} images of {index.num_classes:,} classes in {len(index.shards):,} shards, "
            f"{megabytes:,.1f} MB, digest {index.digest[:12]}: {folder}"
        )


def _pack(args: argparse.Namespace) -> int:
    from vitlight.data.importers import pack

    _describe(pack(args.source, args.destination, **_given(args, "samples_per_shard", "classes", "overwrite")))
    return 0


def _index(args: argparse.Namespace) -> int:
    from vitlight.data.index import load_index

    if args.processes is not None and args.processes < 1:
        raise InputError(f"--processes={args.processes} is not at least 1")
    _describe({"index": load_index(args.source, args.index_dir, num_processes=args.processes)})
    return 0


def _synth(args: argparse.Namespace) -> int:
    from vitlight.data.synthetic import synth

    options = (
        "num_train",
        "num_test",
        "image_size",
        "num_classes",
        "difficulty",
        "seed",
        "samples_per_shard",
        "overwrite",
    )
    _describe(synth(args.destination, **_given(args, *options)))
    return 0

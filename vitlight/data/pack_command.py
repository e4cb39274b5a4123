"""`vitlight data pack`: its parser, built with argparse alone, and what it calls."""

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_pack_parser"]

_OPTIONS = (
    "short_side", "quality", "samples_per_shard", "shuffle", "seed", "classes", "labels", "processes",
    "max_undecodable", "overwrite",
)  # fmt: skip
_SOURCE = (
    "a folder of class folders (or of train/, val/ and test/ with these), ImageNet's archives, IDX files, CIFAR-10/100 "
    "pickles or their .tar.gz, Parquet of the Hugging Face layout, or .npz; found out by content"
)


def add_pack_parser(actions: Any) -> None:
    """Add `pack` to the argparse subparsers of `data`; the handler, Namespace -> exit code, is left in `args.handler`."""
    text = "images as they are handed out -> WebDataset shards, indexed"
    parser: argparse.ArgumentParser = actions.add_parser(
        "pack", help=text, description=f"{text}. A killed run goes on."
    )
    parser.set_defaults(handler=_pack)
    parser.add_argument("source", type=Path, metavar="SOURCE", help=_SOURCE)
    parser.add_argument("destination", type=Path, metavar="DESTINATION", help="gets a folder of shards a split")
    parser.add_argument(
        "--short-side", type=int, metavar="N", help="shrink larger images to N pixels on the short side"
    )
    parser.add_argument("--quality", type=int, metavar="Q", help="of JPEGs that are encoded again (default: 95)")
    parser.add_argument("--samples-per-shard", type=int, metavar="N", help="images of one shard (default: 2,000)")
    parser.add_argument(
        "--shuffle",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="order images by a hash of their keys, or as the source has them",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="another seed, another order (default: 0)")
    parser.add_argument(
        "--classes", metavar="NAMES", help="class names, if the source has none: a,b,c or a file, one a line"
    )
    parser.add_argument(
        "--labels", metavar="KIND", help="CIFAR-100: fine (default) or coarse; Parquet: the label's column"
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="processes (default: one for each 4 shards, up to all cores)"
    )
    parser.add_argument(
        "--max-undecodable", type=int, metavar="N", help="leave out up to N images that can't be decoded (default: 0)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace shards that vitlight wrote there before")


def _pack(args: argparse.Namespace) -> int:
    from vitlight.data.importers import pack
    from vitlight.data.shards import describe_index

    given = {name: value for name in _OPTIONS if (value := getattr(args, name)) is not None}
    for name, index in pack(args.source, args.destination, **given).items():
        print(describe_index(name, index))
    return 0

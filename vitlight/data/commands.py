"""`vitlight data`: the parsers of its commands, built with argparse alone, and what they call."""

import argparse
from pathlib import Path
from typing import Any

from vitlight.data.bench_command import add_bench_parser
from vitlight.data.pack_command import add_pack_parser
from vitlight.data.plan_command import add_plan_parser
from vitlight.data.verify_command import add_index_parser, add_verify_parser

__all__ = ["add_data_parser"]


def add_data_parser(subparsers: Any) -> None:
    """Add `data` to argparse `subparsers`; the chosen handler, Namespace -> exit code, is left in `args.handler`."""
    data = subparsers.add_parser("data", help="pack, index, verify, plan, measure and generate WebDataset shards")
    actions = data.add_subparsers(dest="action", required=True, metavar="pack | index | verify | plan | bench | synth")

    add_pack_parser(actions)
    add_index_parser(actions)
    add_verify_parser(actions)
    add_plan_parser(actions)
    add_bench_parser(actions)

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


def _synth(args: argparse.Namespace) -> int:
    from vitlight.data.shards import describe_index
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
    for name, index in synth(args.destination, **_given(args, *options)).items():
        print(describe_index(name, index))
    return 0

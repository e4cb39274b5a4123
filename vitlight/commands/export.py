"""`vitlight export`: the parser, built with argparse alone, and what it calls."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitlight.commands.model_arguments import add_model_arguments, load_from_arguments
from vitlight.errors import InputError
from vitlight.messages import say

__all__ = ["add_export_parser"]

_TOLERANCE = 1e-4


def add_export_parser(subparsers: Any) -> None:
    """Add `export` to argparse `subparsers`; the handler, Namespace -> exit code, is left in `args.handler`."""
    text = "a trained model as torch.export's .pt2 or as .onnx, loaded again and compared with the model itself"
    parser: argparse.ArgumentParser = subparsers.add_parser("export", help=text, description=text)
    add_model_arguments(parser)
    parser.add_argument("targets", nargs="+", type=Path, metavar="TARGET", help=".pt2 or .onnx files to write")
    parser.add_argument(
        "--batch", default="dynamic", metavar="B", help="dynamic, or always B images (default: dynamic)"
    )
    parser.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="take uint8 pixels, resized and cropped, and normalise them inside",
    )
    parser.add_argument(
        "--check-images",
        nargs="+",
        default=[],
        metavar="IMAGES",
        help="compare on these, too: files, folders, .tar shards, @LIST of these (default: on noise alone)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=_TOLERANCE,
        metavar="X",
        help=f"largest difference of two logits that is accepted (default: {_TOLERANCE:g})",
    )
    parser.add_argument(
        "--json", action="store_true", help="what was compared, as a JSON list with an object for each file"
    )
    parser.set_defaults(handler=_export)


def _export(args: argparse.Namespace) -> int:
    """Write, compare, and say what came of it; 0."""
    batch_size = _batch_size(args.batch)
    if not args.tolerance > 0:
        raise InputError(f"--tolerance={args.tolerance:g} is not above 0")

    from vitlight.prediction.export import check_target, export_model
    from vitlight.prediction.sources import ImageSet

    targets = [target.expanduser() for target in args.targets]
    for target in targets:
        check_target(target)
    images = ImageSet(args.check_images) if args.check_images else None
    trained = load_from_arguments(args)
    say(f"model: {trained.source}")
    parities = export_model(
        trained,
        targets,
        batch_size=batch_size,
        with_preprocessing=args.with_preprocessing,
        check_images=images,
        tolerance=args.tolerance,
    )
    if args.json:
        said = [{"output": str(path), "model": trained.source, **asdict(each)} for path, each in parities.items()]
        print(json.dumps(said))
        return 0
    kind = "uint8 pixels" if args.with_preprocessing else "normalised float32 images"
    shape = f"({batch_size or 'B'}, {trained.in_channels}, {trained.image_size}, {trained.image_size})"
    for target, parity in parities.items():
        given = f" and {parity.num_given} given images" if parity.num_given else ""
        changed = f"; the likeliest class is another in {parity.num_changed}" if parity.num_changed else ""
        print(
            f"{target}: {trained.arch}, {kind} {shape} to logits ({batch_size or 'B'}, {trained.num_classes})\n"
            f"largest difference of two logits: {parity.max_difference:.1e} (of up to {parity.max_logit:.3g}), loaded "
            f"afresh, on {parity.num_random} images of noise{given}{changed}"
        )
    return 0


def _batch_size(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--batch={text} is neither dynamic nor a number of at least 1")
    return int(text)

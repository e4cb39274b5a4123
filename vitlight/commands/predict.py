"""`vitlight predict`: the parser, built with argparse alone, and what it calls."""

import argparse
import contextlib
import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.commands.model_arguments import add_model_arguments, load_from_arguments
from vitlight.errors import InputError
from vitlight.messages import say

if TYPE_CHECKING:
    from vitlight.prediction.output import PredictionFile
    from vitlight.prediction.rows import Columns
    from vitlight.prediction.sources import ImageSet
    from vitlight.training.trained import TrainedModel

__all__ = ["add_predict_parser"]

_TOP = 5
_BATCH_SIZE = 64
_FEW_IMAGES = 2000  # that one process decodes before others have started
_MOST_WORKERS = 8


def add_predict_parser(subparsers: Any) -> None:
    """Add `predict` to argparse `subparsers`; the handler, Namespace -> exit code, is left in `args.handler`."""
    text = "classes and probabilities for files, folders and shards of images, on the terminal, as CSV or Parquet"
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "predict",
        help=text,
        description=text,
        epilog="exit codes: 0 all images were predicted, 1 some could not be read (column error), 2 bad input.",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="files, folders with all in them, .tar shards (also URLs and patterns as x-{000..012}.tar), @LIST of these",
    )
    parser.add_argument("--output", metavar="FILE", help=".csv, .parquet, or - for CSV on standard output")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace FILE, or what is left of it, where it is there"
    )
    parser.add_argument("--top", type=int, metavar="K", help=f"the K likeliest classes of each image (default: {_TOP})")
    parser.add_argument(
        "--probabilities", choices=("top", "all"), default="top", help="of those classes, or of all (default: top)"
    )
    parser.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="one a line, or .json (default: the run's, where it knows them)",
    )
    parser.add_argument("--image-part", metavar="EXT", help="extension of the image in samples of shards with several")
    parser.add_argument("--batch-size", type=int, metavar="B", help="images a step (default: the run's, or 64)")
    parser.add_argument(
        "--num-workers", type=int, metavar="N", help="decoding processes (default: by images and cores)"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument(
        "--json", action="store_true", help="a JSON object a line for each image; with --output FILE, one of its facts"
    )
    parser.set_defaults(handler=_predict)


def _predict(args: argparse.Namespace) -> int:
    """Predict all there is; 1 where some could not be read."""
    path = None if args.output in (None, "-") else Path(args.output).expanduser()
    if path is None and args.overwrite:
        raise InputError("--overwrite is about --output FILE, and none is given; leave it out")
    if args.json and args.output == "-":
        raise InputError("--output=- is CSV on standard output, and --json is JSON there; give one of them")
    for name, least in (("top", 1), ("batch_size", 1), ("num_workers", 0)):
        if (value := getattr(args, name)) is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')}={value} is not at least {least}")

    from vitlight.prediction.output import PredictionFile, check_output
    from vitlight.prediction.predict import choose_device
    from vitlight.prediction.sources import ImageSet

    if path is not None:
        check_output(path, args.overwrite)
    images, device = ImageSet(args.images, args.image_part), choose_device(args.device)
    trained = load_from_arguments(args)
    trained.check_classifier()
    trained = _with_names(trained, args.class_names)
    columns = _columns(args, trained, images)
    say(f"model: {trained.source}")
    if trained.loss.startswith("sigmoid"):
        say(f"trained with loss {trained.loss}: each class has a probability of its own, and they don't sum to 1")
    file = None
    if path is not None:
        file = PredictionFile(path, columns, _identity(trained, images, args), args.overwrite)
        if file.num_done:
            say(f"{file.partial}: goes on after {file.num_done:,} images")
    num_images, num_errors = _run(args, trained, images, columns, file, device)
    said = f"{num_images - num_errors:,} of {num_images:,} images predicted"
    if num_errors:
        said += f"; {num_errors:,} could not be read, as column error says"
    if args.json and path is not None:
        facts = {"output": str(path), "num_images": num_images, "num_errors": num_errors, "model": trained.source}
        print(json.dumps(facts))
    say(said if path is None else f"{path}: {said}")
    return 1 if num_errors else 0


def _with_names(trained: "TrainedModel", path: Path | None) -> "TrainedModel":
    """With the names in a file, or else those of its run."""
    from vitlight.data.labels import read_class_names

    if path is None:
        return trained
    names = read_class_names(path.expanduser(), "--class-names").names
    if len(names) != trained.num_classes:
        raise InputError(f"--class-names={path} names {len(names)} classes, and the model has {trained.num_classes}")
    return replace(trained, class_names=names)


def _columns(args: argparse.Namespace, trained: "TrainedModel", images: "ImageSet") -> "Columns":
    from vitlight.prediction.rows import Columns

    if args.top is not None and args.top > trained.num_classes:
        raise InputError(f"--top={args.top} is more than the {trained.num_classes} classes of the model")
    top = min(args.top or _TOP, trained.num_classes)
    num_all = trained.num_classes if args.probabilities == "all" else 0
    return Columns(top, num_all, images.has_shards, trained.class_names)


def _identity(trained: "TrainedModel", images: "ImageSet", args: argparse.Namespace) -> dict[str, Any]:
    """What decides which rows come in which order; of the images their names alone."""
    names = hashlib.blake2b(digest_size=16)
    for name in images.names:
        names.update(os.fsencode(name) + b"\0")
    classes = json.dumps(trained.class_names).encode()
    return {
        "model": trained.source,
        "digest": trained.digest,
        "image_size": trained.image_size,
        "mean": trained.mean,
        "std": trained.std,
        "crop": trained.crop_fraction,
        "images": names.hexdigest(),
        "image_part": args.image_part,
        "class_names_digest": hashlib.blake2b(classes, digest_size=16).hexdigest(),
    }


def _run(
    args: argparse.Namespace,
    trained: "TrainedModel",
    images: "ImageSet",
    columns: "Columns",
    file: "PredictionFile | None",
    device: Any,
) -> tuple[int, int]:
    """Predict and write; returns how many images there were, and how many of them with an error."""
    from vitlight.data.progress import progress
    from vitlight.prediction.predict import predictions

    total = images.count()
    num_done = 0 if file is None else file.num_done
    num_images, num_errors = num_done, 0 if file is None else file.num_errors
    batches = predictions(
        trained,
        images,
        top=columns.top,
        wants_all=columns.num_all > 0,
        batch_size=args.batch_size or trained.data_settings().get("eval_batch_size", _BATCH_SIZE),
        num_workers=_num_workers(total) if args.num_workers is None else args.num_workers,
        device=device,
        num_done=num_done,
    )
    if args.output == "-":
        sys.stdout.write(columns.csv_header().decode())
    closing = contextlib.nullcontext() if file is None else contextlib.closing(file)
    with closing, progress("Predicting", None if total is None else total - num_done, "images") as advance:
        for batch in batches:
            if file is not None:
                file.write(batch)
            elif args.output == "-":
                sys.stdout.write(columns.csv(batch).decode())
            else:
                for prediction in batch:
                    print(columns.json(prediction) if args.json else columns.line(prediction))
            num_images += len(batch)
            num_errors += sum(1 for prediction in batch if prediction.error is not None)
            advance(len(batch))
        if file is not None:
            file.finish()
    return num_images, num_errors


def _num_workers(total: int | None) -> int:
    if total is not None and total <= _FEW_IMAGES:
        return 0
    return min(len(os.sched_getaffinity(0)), _MOST_WORKERS)

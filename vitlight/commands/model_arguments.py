"""SOURCE and its options, for the commands that load a trained model; built with argparse alone."""

import argparse
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError

if TYPE_CHECKING:
    from vitlight.training.trained import TrainedModel

__all__ = ["add_model_arguments", "load_from_arguments"]

_SIZES = ("image_size", "num_classes", "in_channels")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """SOURCE, and what must be said of it where it is no run of vitlight."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a run directory, a checkpoint, or with --arch a file of weights, a URL or hf-hub:ORG/NAME; timm:NAME[.TAG]",
    )
    group = parser.add_argument_group("the model")
    group.add_argument("--which", choices=("best", "last"), help="of a run's checkpoints (default: best, where kept)")
    group.add_argument("--image-size", type=int, metavar="N", help="pixels of a side (default: as it was trained)")
    group.add_argument("--arch", metavar="ARCH", help="what weights of elsewhere are of: `vitlight models`")
    group.add_argument(
        "--num-classes", type=int, metavar="N", help="classes of weights (default: as their shapes tell)"
    )
    group.add_argument(
        "--layout",
        choices=("auto", "timm", "google", "huggingface", "vitlight"),
        default="auto",
        help="whose names the tensors of weights have (default: auto)",
    )
    group.add_argument(
        "--option",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of ARCH, such as pool=gap; may be given several times",
    )
    for name, what in (("mean", "mean of the normalisation"), ("std", "its standard deviation")):
        text = (
            f"{what}, of pixels in [0, 1]: one number or one a channel, A,B,C (default: the run's, or usual for ARCH)"
        )
        group.add_argument(f"--{name}", type=_numbers, metavar="X", help=text)
    group.add_argument(
        "--crop",
        type=float,
        metavar="F",
        help="shorter side is resized to image size / F, the centre cut out; in (0, 1]",
    )


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a number, or several with commas between them") from error


def load_from_arguments(args: argparse.Namespace) -> "TrainedModel":
    """The model that `add_model_arguments`'s options name. Raises InputError as `load_trained` does."""
    from dataclasses import replace

    from vitlight.models.options import read_options
    from vitlight.training.trained import load_trained

    for name in ("image_size", "num_classes"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')}={value} is not at least 1")
    if args.crop is not None and not 0.0 < args.crop <= 1.0:
        raise InputError(f"--crop={args.crop} is not in (0, 1]")
    trained = load_trained(
        args.source,
        arch=args.arch,
        image_size=args.image_size,
        num_classes=args.num_classes,
        model_options=read_options(args.options, elsewhere=_SIZES),
        layout=args.layout,
        which=args.which or "best",
    )
    changes: dict[str, Any] = {} if args.crop is None else {"crop_fraction": args.crop}
    for name in ("mean", "std"):
        values: tuple[float, ...] | None = getattr(args, name)
        if values is None:
            continue
        if len(values) not in (1, trained.in_channels):
            raise InputError(f"--{name} has {len(values)} values for {trained.in_channels} channels")
        if name == "std" and min(values) <= 0:
            raise InputError(f"--std={values[0]:g} is not positive")
        changes[name] = values if len(values) == trained.in_channels else values * trained.in_channels
    if args.which is not None and trained.run is None:
        raise InputError(
            f"--which={args.which} is about the checkpoints of a run, and {args.source} is none; leave it out"
        )
    return replace(trained, **changes)

"""`vitlight convert`: weights from one project's files to another's, checked tensor by tensor."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError
from vitlight.messages import say

if TYPE_CHECKING:
    from torch import nn

    from vitlight.models.weights import LoadReport

__all__ = ["add_convert_parser"]

_LAYOUTS = ("timm", "google", "huggingface", "vitlight")
_SIZES = ("image_size", "num_classes", "in_channels")


def add_convert_parser(subparsers: Any) -> None:
    """Add `convert` to argparse `subparsers`; the handler, Namespace -> exit code, is left in `args.handler`."""
    text = "weights to and from timm, Google's .npz, Hugging Face and runs of vitlight; every tensor is checked"
    parser = subparsers.add_parser("convert", help=text, description=text)
    parser.add_argument("source", metavar="SOURCE", help="a file, a URL, or hf-hub:ORG/NAME[@REVISION][/FILE]")
    parser.add_argument("target", type=Path, metavar="TARGET", help="a .safetensors, .npz or .pt file to write")
    parser.add_argument("--arch", required=True, metavar="ARCH", help="what the weights are of: `vitlight models`")
    parser.add_argument(
        "--from", dest="source_layout", choices=("auto", *_LAYOUTS), default="auto", help="default: auto"
    )
    parser.add_argument(
        "--to", dest="target_layout", choices=_LAYOUTS, help="default: google for .npz, vitlight for the others"
    )
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels of a side (default: as the source's)")
    parser.add_argument("--num-classes", type=int, metavar="N", help="classes (default: as the source's)")
    parser.add_argument("--in-channels", type=int, metavar="N", help="channels of an image (default: as the source's)")
    parser.add_argument(
        "--option",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the architecture, such as pool=gap; may be given several times",
    )
    parser.add_argument("--fresh-head", action="store_true", help="leave the source's classifier; ours starts at zero")
    parser.set_defaults(handler=_convert)


def _convert(args: argparse.Namespace) -> int:
    from vitlight.models import build_model
    from vitlight.models.options import read_options
    from vitlight.models.weight_files import write_state
    from vitlight.models.weight_sizes import sizes_in
    from vitlight.models.weights import convert_state, find_layout, load_weights, read_state

    given = {name: value for name in _SIZES if (value := getattr(args, name)) is not None}
    for name, value in given.items():
        if value < 1:
            raise InputError(f"--{name.replace('_', '-')}={value} is not at least 1")
    options = read_options(args.options, elsewhere=_SIZES)
    target_layout = args.target_layout or ("google" if args.target.suffix == ".npz" else "vitlight")
    state = read_state(args.source)
    layout = find_layout(state, args.source_layout)
    sizes = sizes_in(state, layout.NAME, args.arch, options) | given
    model = build_model(args.arch, **options, **sizes)
    try:
        report = load_weights(model, state, layout.NAME, head="fresh" if args.fresh_head else "load")
    except InputError as error:
        where = " (on the command line: --fresh-head)" if "head='fresh'" in str(error) else ""
        raise InputError(f"{args.source}: {error}{where}") from error
    write_state(convert_state(model, target_layout), args.target)
    if target_layout == "timm" and (unlike := _unlike_timm(model)):
        say(
            f"vitlight: note: timm's coatnet_N_224 are other networks than {args.target}, they have {', '.join(unlike)}; "
            "configure timm's model as ours"
        )
    print(f"{args.source} ({report.layout}): {_summary(args.arch, model, report)} -> {args.target} ({target_layout})")
    return 0


def _unlike_timm(model: "nn.Module") -> list[str]:
    """For a CoAtNet, what timm's named ones have otherwise, a field each; empty for other models."""
    from vitlight.models.coatnet import TIMM_OPTIONS, CoAtNet

    if not isinstance(model, CoAtNet):
        return []
    pairs = ((name, theirs, getattr(model.config, name)) for name, theirs in TIMM_OPTIONS.items())
    return [f"{name}={theirs!r} (not {ours!r})" for name, theirs, ours in pairs if ours != theirs]


def _summary(arch: str, model: "nn.Module", report: "LoadReport") -> str:
    config: Any = model.config
    parts = [f"{arch} at {config.image_size} px, {report.num_params:,} parameters"]
    parts += report.describe_resized()
    if report.fresh:
        parts.append(f"fresh head of {config.num_classes} classes")
    if report.ignored:
        parts.append(f"{len(report.ignored)} tensors ignored")
    return ", ".join(parts)

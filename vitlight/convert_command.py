"""`vitlight convert`: weights from one project's files to another's, checked tensor by tensor."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitlight.models.layouts import Layout
    from vitlight.models.weights import LoadReport

__all__ = ["add_convert_parser"]

_LAYOUTS = ("timm", "google", "huggingface", "vitlight")
_SIZES = ("image_size", "num_classes", "in_channels")
# The layers that see the image, one a family.
_FIRST = ("patch_embed.weight", "stem.0.weight", "backbone.stem.weight")


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
    from vitlight.models.weights import convert_state, find_layout, load_weights, read_state

    given = {name: value for name in _SIZES if (value := getattr(args, name)) is not None}
    for name, value in given.items():
        if value < 1:
            raise InputError(f"--{name.replace('_', '-')}={value} is not at least 1")
    options = read_options(args.options, elsewhere=_SIZES)
    target_layout = args.target_layout or ("google" if args.target.suffix == ".npz" else "vitlight")
    state = read_state(args.source)
    layout = find_layout(state, args.source_layout)
    sizes = _sizes_in(state, layout, args.arch, options) | given
    model = build_model(args.arch, **options, **sizes)
    try:
        report = load_weights(model, state, layout.NAME, head="fresh" if args.fresh_head else "load")
    except InputError as error:
        where = " (on the command line: --fresh-head)" if "head='fresh'" in str(error) else ""
        raise InputError(f"{args.source}: {error}{where}") from error
    write_state(convert_state(model, target_layout), args.target)
    if target_layout == "timm" and (unlike := _unlike_timm(model)):
        print(
            f"vitlight: note: timm's coatnet_N_224 are other networks than {args.target}, they have {', '.join(unlike)}; "
            "configure timm's model as ours",
            file=sys.stderr,
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


def _sizes_in(state: "dict[str, Tensor]", layout: "Layout", arch: str, options: dict[str, Any]) -> dict[str, int]:
    """num_classes, in_channels and image_size as the tensors' shapes tell; the arch's own image size where they don't."""
    import torch

    from vitlight.models import build_model, default_image_size

    usual_size = default_image_size(arch)
    with torch.device("meta"):
        model = build_model(arch, image_size=usual_size, **options)
    found = _found(state, layout, model)
    sizes = {"image_size": usual_size}
    for name, tensor in found.items():
        if name == "head.weight":
            sizes["num_classes"] = tensor.shape[0]
        elif name in _FIRST:
            sizes["in_channels"] = tensor.shape[1]
        elif name == "posemb":
            config: Any = model.config
            grid = math.isqrt(tensor.shape[1])  # a row of the class token's changes nothing
            sizes["image_size"] = grid * (usual_size // config.grid)
    tables = [name for name in found if name.endswith(".bias_table")]
    if tables:
        config = model.config
        stage = int(tables[0].split(".")[1]) + 1  # the stem is stage 0 of the config
        grid = (found[tables[0]].shape[1] + 1) // 2
        if grid != config.grids[stage]:  # several image sizes have one grid: the usual one, or the largest
            sizes["image_size"] = grid * math.prod(config.strides[: stage + 1])
    return sizes


def _found(state: "dict[str, Tensor]", layout: "Layout", model: "nn.Module") -> "dict[str, Tensor]":
    """Our tensors whose shapes follow from the sizes, at the source's sizes, as far as the source has them."""
    if (canonical := getattr(layout, "canonical", None)) is not None:
        state = canonical(state, model)
    ours = model.state_dict()
    found: dict[str, Tensor] = {}
    for entry in layout.entries(model):
        if not any(name in ("head.weight", "posemb", *_FIRST) or name.endswith(".bias_table") for name in entry.ours):
            continue
        theirs = [state[name] for name in entry.theirs if name in state]
        expected = entry.to_theirs([ours[name] for name in entry.ours])
        if [tensor.ndim for tensor in theirs] == [tensor.ndim for tensor in expected]:
            found |= zip(entry.ours, entry.to_ours(theirs), strict=True)
    return found


def _summary(arch: str, model: "nn.Module", report: "LoadReport") -> str:
    config: Any = model.config
    parts = [f"{arch} at {config.image_size} px, {report.num_params:,} parameters"]
    by_grids: dict[Any, list[str]] = {}
    for name, grids in report.resized.items():
        by_grids.setdefault(grids, []).append(name)
    for (before, after), names in by_grids.items():
        what = names[0] if len(names) == 1 else f"{len(names)} bias tables"
        parts.append(f"{what} resized from {before[0]}x{before[1]} to {after[0]}x{after[1]}")
    if report.fresh:
        parts.append(f"fresh head of {config.num_classes} classes")
    if report.ignored:
        parts.append(f"{len(report.ignored)} tensors ignored")
    return ", ".join(parts)

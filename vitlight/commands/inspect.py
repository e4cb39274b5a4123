"""`vitlight inspect`: the parser, built with argparse alone, and what it calls."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.commands.model_arguments import add_model_arguments, load_from_arguments
from vitlight.errors import InputError
from vitlight.messages import say

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vitlight.analysis.insight.insight import Insight
    from vitlight.training.trained import TrainedModel

__all__ = ["add_inspect_parser"]

_PARTS = ("attention", "filters", "positions", "biases", "receptive_field")
_NUM_IMAGES = 32


def add_inspect_parser(subparsers: Any) -> None:
    """Add `inspect` to argparse `subparsers`; the handler, Namespace -> exit code, is left in `args.handler`."""
    text = "look inside trained networks: attention distance, maps and rollout, filters, biases, receptive fields"
    parser = subparsers.add_parser("inspect", help=text, description=text)
    add_model_arguments(parser)
    parser.add_argument(
        "--beside",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="further runs, checkpoints or timm:NAME, set side by side with the first on one scale; --which, "
        "--image-size and --crop are for all of them",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGES",
        help="files, folders, .tar shards or @LIST (default: held-out images of the run's own data)",
    )
    parser.add_argument(
        "--num-images",
        type=int,
        default=_NUM_IMAGES,
        metavar="N",
        help=f"how many of them, evenly spread over files, the first of shards (default: {_NUM_IMAGES})",
    )
    parser.add_argument("--only", metavar="PART,...", help=f"of {', '.join(_PARTS)} (default: all that there is)")
    parser.add_argument(
        "--layers", metavar="I,...", help="attention layers, the first is 0 and the last -1 (default: all)"
    )
    parser.add_argument("--heads", metavar="I,...", help="heads of each of these layers (default: all)")
    parser.add_argument(
        "--fusion", choices=("mean", "min", "max"), default="mean", help="rollout takes this over heads (default: mean)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: insight/ in the run, of several in here)"
    )
    parser.add_argument(
        "--wandb",
        nargs="?",
        const="vitlight",
        metavar="PROJECT",
        help="also as a W&B run with the page and all figures, offline where there is no key (project: vitlight)",
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--json", action="store_true", help="all numbers as one JSON object in place of tables")
    parser.set_defaults(handler=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    """Write the page, figures and tables, and show the numbers; 0."""
    only = _words(args.only)
    layers, heads = _numbers("--layers", args.layers), _numbers("--heads", args.heads)
    if args.num_images < 1:
        raise InputError(f"--num-images={args.num_images} is not at least 1")
    if heads is not None and (wrong := [head for head in heads if head < 0]):
        raise InputError(f"--heads: {wrong[0]} is below 0; heads are counted from 0")
    from dataclasses import replace

    from vitlight.analysis.insight import write_insight
    from vitlight.analysis.insight.numbers import as_json
    from vitlight.prediction.predict import choose_device
    from vitlight.training.trained import load_trained

    device = choose_device(args.device)
    models = [load_from_arguments(args)]
    for source in args.beside:
        other = load_trained(source, which=args.which or "best", image_size=args.image_size)
        models.append(other if args.crop is None else replace(other, crop_fraction=args.crop))
    insights = [
        _look_into(model, name, device, args, only, layers, heads)
        for model, name in zip(models, _names(models), strict=True)
    ]
    page, pngs = write_insight(insights, _folder(args.output, models))
    shown = None
    if args.wandb:
        from vitlight.training.wandb_report import show_page

        shown = show_page(page, " · ".join(insight.name for insight in insights), pngs, args.wandb, "insight")
    if args.json:
        found = {"insight": str(page), "networks": [as_json(insight) for insight in insights], "wandb": shown}
        print(json.dumps(found, indent=1))
        return 0
    for insight in insights:
        _show(insight)
    print(f"insight: {page}")
    if shown:
        print(shown)
    return 0


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",")]


def _numbers(flag: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise InputError(f"{flag}={text} is not whole numbers with commas between them, such as 0,5") from None


def _names(models: Sequence["TrainedModel"]) -> list[str]:
    """The arch, and where several have the same one, which of them it is."""
    archs = [model.arch for model in models]
    names: list[str] = []
    for model in models:
        name = model.arch
        if archs.count(name) > 1:
            name += f" {model.run.name if model.run is not None else model.digest[:8]}"
        count = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({count + 1})" if count else name)
    return names


def _folder(given: Path | None, models: Sequence["TrainedModel"]) -> Path:
    if given is not None:
        return given
    run = models[0].run
    return run / "insight" if run is not None and len(models) == 1 else Path("insight")


def _look_into(
    model: "TrainedModel",
    name: str,
    device: "torch.device",
    args: argparse.Namespace,
    only: Sequence[str] | None,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
) -> "Insight":
    from vitlight.analysis.insight import inspect_network
    from vitlight.analysis.insight.insight import NEEDS_IMAGES

    needs = only is None or any(part in NEEDS_IMAGES for part in only)
    pixels = _pixels(model, args) if needs else None
    network = model.network.to(device)
    return inspect_network(
        network,
        None if pixels is None else model.normalize(pixels.to(device)),
        pixels,
        name=name,
        arch=model.arch,
        source=_shown_source(model),
        image_size=model.image_size,
        only=only,
        layers=layers,
        heads=heads,
        fusion=args.fusion,
    )


def _shown_source(model: "TrainedModel") -> str:
    """Its line for people, in which a run below the working directory has no longer path than that: pages are handed on."""
    if model.run is None or not model.run.is_relative_to(Path.cwd()):
        return model.source
    return model.source.replace(str(model.run), str(model.run.relative_to(Path.cwd())))


def _pixels(model: "TrainedModel", args: argparse.Namespace) -> "Tensor":
    """uint8 (N, C, S, S) of the images that are asked for."""
    from vitlight.training.insight import own_images

    if args.images is not None:
        return _named_images(model, args.images, args.num_images)
    if not model.data_settings():
        raise InputError(
            f"{model.source.partition(',')[0]}: there is no run whose images could be taken; give --images, or "
            "--only filters,positions,biases"
        )
    data = model.open_data(num_workers=0, eval_batch_size=args.num_images, eval_crop=model.crop_fraction)
    return own_images(data, args.num_images)


def _named_images(model: "TrainedModel", sources: Sequence[str], count: int) -> "Tensor":
    """`count` of the images that `sources` name, evenly spread over files, or the first where there are shards."""
    from itertools import islice

    from vitlight.prediction.images import EvaluationViews, ViewRequest
    from vitlight.prediction.sources import ImageSet

    found = ImageSet(sources)
    items = list(islice(found, count) if found.has_shards else found)
    if len(items) > count:
        items = [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]
    store = found.open_store()
    try:
        views = EvaluationViews(model.image_size, model.in_channels, model.crop_fraction, store)
        batch = views[ViewRequest(tuple(items))]
    finally:
        store.close()
    if wrong := [(item, error) for item, error in zip(items, batch["errors"], strict=True) if error is not None]:
        item, error = wrong[0]
        raise InputError(f"--images: {item.name} {error}; leave it out")
    pixels: Tensor = batch["image"]
    return pixels


def _show(insight: "Insight") -> None:
    """A table for attention and one for receptive fields, and what isn't there."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{insight.name}[/]: {insight.source}", highlight=False, soft_wrap=True)
    if insight.attention is not None:
        table = Table("layer", "module", "heads", "distance, px", "over heads", "entropy, nats", box=None)
        for study in insight.attention.layers:
            low, high = float(study.distance.nan_to_num().min()), float(study.distance.nan_to_num().max())
            table.add_row(
                *(str(study.layer.index), study.layer.name, str(len(study.heads))),
                *(f"{float(study.distance.nanmean()):.4g}", f"{low:.4g} to {high:.4g}"),
                f"{float(study.entropy.mean()):.4g}",
            )
        console.print(table)
    if insight.fields:
        table = Table("stage", "stride, px", "receptive field: 50 %, px", "90 %, px", box=None)
        for field in insight.fields:
            table.add_row(field.label, str(field.stride), f"{field.radius_50:.3g}", f"{field.radius_90:.3g}")
        console.print(table)
    for line in insight.missing:
        say(line)

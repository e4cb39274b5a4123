"""What `vitlight models` prints."""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any, cast

from rich.console import Console
from rich.table import Table
from torch import nn

from vitlight.cost.archs import model_table
from vitlight.cost.counts import count_params, forward_macs
from vitlight.cost.memory import DeviceType, MemoryEstimate, Optimizer, Precision, estimate_memory
from vitlight.cost.modules import group_table, module_table
from vitlight.cost.trace import build_on_meta
from vitlight.errors import InputError
from vitlight.models import default_image_size
from vitlight.models.options import read_options

__all__ = ["report_models"]

_CONVENTION = (
    "MACs are multiply-adds of one image's forward pass, products and convolutions only; a FLOP is half a MAC."
)
_MIB = 2**20
_LARGEST_SIDE = 2**15
_MEMORY_DEFAULTS = {"precision": "32", "optimizer": "adamw", "device": "cpu"}


def report_models(args: argparse.Namespace) -> int:
    """All listed architectures, or one in detail; returns the exit code. InputError for arguments that don't fit."""
    if args.image_size is not None and not 1 <= args.image_size <= _LARGEST_SIDE:
        raise InputError(f"--image-size={args.image_size} is not from 1 to {_LARGEST_SIDE} pixels")
    _check_together(args)
    if args.arch is None:
        _report_all(args)
    else:
        _report_one(args)
    return 0


def _check_together(args: argparse.Namespace) -> None:
    """InputError for an argument that would say nothing beside the others."""
    if args.arch is None:
        for flag in ("modules", "memory", "option"):
            if getattr(args, flag):
                raise InputError(f"--{flag} is about one architecture; name it: vitlight models ARCH --{flag}")
    elif args.family is not None:
        raise InputError(f"--family={args.family} chooses from the list of all; leave it out beside ARCH={args.arch}")
    if args.depth is not None:
        if not args.modules:
            raise InputError(f"--depth={args.depth} is about the rows of --modules; give that, too")
        if args.depth < 1:
            raise InputError(f"--depth={args.depth} is not at least 1")
    if not args.memory:
        for flag in ("batch_size", "precision", "optimizer", "checkpointing", "keep_gradients", "device"):
            if getattr(args, flag) not in (None, False):
                raise InputError(f"--{flag.replace('_', '-')} is about the estimate of --memory; give that, too")


def _report_all(args: argparse.Namespace) -> None:
    rows = [row for row in model_table(args.image_size) if args.family in (None, row["family"])]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    _print(
        ("arch", "family", "params [M]", "forward [GMACs]", "image size [px]"),
        [
            (
                row["arch"],
                row["family"],
                _millions(row["params"]),
                _billions(row["forward_macs"]),
                str(row["image_size"]),
            )
            for row in rows
        ],
        num_texts=2,
    )


def _report_one(args: argparse.Namespace) -> None:
    image_size = default_image_size(args.arch) if args.image_size is None else args.image_size
    model = build_on_meta(args.arch, image_size, **_options(args.option or ()))
    memory = _memory(args, model, image_size) if args.memory else None
    groups, modules = group_table(model, image_size), module_table(model, image_size)
    if args.depth is not None:
        modules = [row for row in modules if row.depth <= args.depth]
    totals = {
        "arch": args.arch,
        "image_size": image_size,
        "params": count_params(model),
        "forward_macs": forward_macs(model, image_size),
    }
    if args.json:
        details: dict[str, Any] = {"groups": [row._asdict() for row in groups]}
        if args.modules:
            details["modules"] = [row._asdict() for row in modules]
        if memory is not None:
            details["memory"] = vars(memory)
        print(json.dumps(totals | details, indent=1))
        return
    print(f"{args.arch} at {image_size} px: {_millions(totals['params'])} M parameters, ", end="")
    print(f"{_billions(totals['forward_macs'])} GMACs forward\n")
    header = ("params [M]", "forward [GMACs]", "share of MACs [%]")
    _print(
        ("group", *header),
        [(row.group, _millions(row.params), _billions(row.forward_macs), f"{100 * row.share:.1f}") for row in groups],
    )
    if args.modules:
        lines = [
            (
                "  " * row.depth + (row.module.rpartition(".")[2] or args.arch),
                row.type,
                *(_millions(row.params), _billions(row.forward_macs), f"{100 * row.share:.1f}"),
            )
            for row in modules
        ]
        _print(("module", "type", *header), lines, num_texts=2)
    if memory is not None:
        _print_memory(args, memory)


def _memory(args: argparse.Namespace, model: nn.Module, image_size: int) -> MemoryEstimate:
    if args.batch_size is None:
        raise InputError("--memory needs --batch-size, the images of one step on one device")
    return estimate_memory(
        model,
        image_size,
        args.batch_size,
        cast(Precision, _setting(args, "precision")),
        cast(Optimizer, _setting(args, "optimizer")),
        args.checkpointing,
        cast(DeviceType, _setting(args, "device")),
        args.keep_gradients,
    )


def _setting(args: argparse.Namespace, name: str) -> str:
    given: str | None = getattr(args, name)
    return _MEMORY_DEFAULTS[name] if given is None else given


def _print_memory(args: argparse.Namespace, memory: MemoryEstimate) -> None:
    names = {"peak_bytes": f"peak, in the {memory.peak_phase} pass"}
    rows = [
        (names.get(name, name.replace("_", " ")), f"{value / _MIB:,.1f}")
        for name, value in vars(memory).items()
        if name != "peak_phase"
    ]
    checkpointing = "activation checkpointing" if args.checkpointing else "no activation checkpointing"
    device, precision, optimizer = (_setting(args, name) for name in ("device", "precision", "optimizer"))
    gradients = "gradients kept between steps" if args.keep_gradients else "gradients dropped after each step"
    setting = f"on {device} at batch size {args.batch_size}, {precision}, {optimizer}, {checkpointing}, {gradients}"
    caption = f"Tensors {setting}; the process itself and workspaces of kernels are not counted."
    _print(("training memory", "[MiB]"), rows, caption=caption)


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    options = read_options(pairs, elsewhere=("image_size",))
    if "arch" in options:
        raise InputError(f"--option arch={options['arch']} is no setting; ARCH itself names the architecture")
    return options


def _print(
    header: Sequence[str], rows: Sequence[Sequence[str]], num_texts: int = 1, caption: str = _CONVENTION
) -> None:
    table = Table(*header, box=None, pad_edge=False)
    for column in table.columns[num_texts:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(caption, style="dim", highlight=False)


def _scaled(unit: float, digits: str) -> Callable[[int | None], str]:
    return lambda number: "-" if number is None else f"{number / unit:{digits}}"


_millions = _scaled(1e6, ",.2f")
_billions = _scaled(1e9, ",.4g")

"""`vitlight law`: the parser, built with argparse alone, and what it calls."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vitlight.errors import InputError

__all__ = ["add_law_parser"]

FORMS = ("auto", "compute", "compute_shift", "size_data", "size_data_repeated")
_EPILOG = (
    "FLOP = half a MAC; train FLOPs = 3 x 2 x forward MACs x images. Runs are split by family and by what was measured "
    "(data, evaluation split, resolution, metric), a law each. docs/laws.md says how to read a fit and when to doubt it."
)


def add_law_parser(subparsers: Any) -> None:
    """Add `law` to argparse `subparsers`; the handler, Namespace -> exit code, is left in `args.handler`."""
    text = "scaling laws fitted to runs: intervals, held-out error, extrapolation, the best size for a budget, the next run"
    parser: argparse.ArgumentParser = subparsers.add_parser("law", help=text, description=text, epilog=_EPILOG)
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="RUNS_OR_CSV",
        help="run directories, folders of them, CSV files, or published:NAME (published:scaling_vit)",
    )
    data = parser.add_argument_group("which runs")
    data.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only runs with this value, or one of several (A,B); also != < <= > >=; may be given several times",
    )
    data.add_argument(
        "--by", action="append", metavar="COLUMN", help="a law for each value of this column (default: family)"
    )
    data.add_argument(
        "--pool",
        action="append",
        default=[],
        metavar="COLUMN",
        help="runs that differ in this column (family, data_digest, image_size, ...) may be in one law",
    )
    data.add_argument("--pareto", action="store_true", help="only runs that none of no more compute beats")
    law = parser.add_argument_group("the law")
    law.add_argument(
        "--form", choices=FORMS, default="auto", help="default: auto, the one that predicts the largest runs best"
    )
    law.add_argument(
        "--error",
        default="top1",
        metavar="COLUMN",
        help="what is predicted: 1 - top1 (the default), 1 - val_top1, loss, ...",
    )
    law.add_argument(
        "--x",
        default="train_flops",
        metavar="COLUMN",
        help="C of the compute forms: train_flops (the default), device_seconds, params, forward_macs, ...",
    )
    law.add_argument(
        "--size",
        choices=("params", "forward_macs"),
        default="params",
        help="N of the size and data forms; forward_macs where patch sizes differ (default: params)",
    )
    law.add_argument(
        "--hold-out",
        type=float,
        default=0.25,
        metavar="FRACTION",
        help="the largest runs, which a second fit does without and is tested on (default: 0.25)",
    )
    law.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="resampled fits (default: 1000)")
    law.add_argument("--level", type=float, default=0.9, help="of the intervals (default: 0.9)")
    law.add_argument("--seed", type=int, default=0, help="of the resampling (default: 0)")
    ask = parser.add_argument_group("what to ask of it")
    ask.add_argument(
        "--predict",
        action="append",
        default=[],
        metavar="AXES",
        help='error there: "train_flops=1e21,1e22", or "params=86e6 samples_seen=1e9,1e10"',
    )
    ask.add_argument(
        "--frontier", action="store_true", help="the best size and data from the least compute to 10x the most"
    )
    ask.add_argument(
        "--budget", metavar="FLOPS|HOURS", help="the best size and data for this: 1e21, or 24h of one device"
    )
    ask.add_argument(
        "--rate", type=float, metavar="FLOP/S", help="of one device, for hours (default: the runs' own, the median)"
    )
    ask.add_argument(
        "--images", type=float, metavar="N", help="distinct images at hand (default: the most that a run had)"
    )
    ask.add_argument("--next", type=int, metavar="N", help="runs to propose with --budget (default: 3; 0 for none)")
    ask.add_argument("--sweep", metavar="FILE", help="propose cells of this sweep file that have no result yet")
    ask.add_argument(
        "--trial",
        metavar="FLOPS|HOURS",
        help="the most that one proposed run may cost (default: a tenth of the budget)",
    )
    ask.add_argument(
        "--narrow",
        choices=("size", "error"),
        help="what proposed runs are to narrow, at the budget: the best size or the error (default: size)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write law.json and a figure for each law, PNG and SVG")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the tables")
    parser.set_defaults(handler=_law)


def _law(args: argparse.Namespace) -> int:
    """Fit, print, and write; 0, or 1 where no set of runs could be fitted. InputError for arguments that don't fit."""
    _check(args)
    from vitlight.analysis.law_fits import fit_laws
    from vitlight.analysis.law_question import read_question
    from vitlight.analysis.law_text import print_laws

    question = read_question(args)
    answer = fit_laws(args.sources, question, _planned_cells, _forward_macs)
    if args.json:
        print(json.dumps(answer.as_json(), indent=1))
    else:
        print_laws(answer)
    if args.out is not None:
        from vitlight.analysis.law_figure import write_laws

        paths = write_laws(answer, args.out)
        if not args.json:
            print(f"law: {', '.join(map(str, paths))}")
    return 0 if answer.laws else 1


def _planned_cells(file: str) -> list[dict[str, Any]]:
    """The cells of a sweep file: what each run resolves to, and `args`, the words after `vitlight` that start it."""
    from vitlight.sweep.plan import plan_sweep
    from vitlight.sweep.space import load_sweep

    return [vars(planned.run) | {"args": list(planned.args)} for planned in plan_sweep(load_sweep(file))]


def _forward_macs(arch: str, image_size: int, in_channels: int, num_classes: int) -> int:
    from vitlight.cost import arch_forward_macs

    return arch_forward_macs(arch, image_size, in_channels, num_classes)


def _check(args: argparse.Namespace) -> None:
    """InputError for a number out of its range, and for a flag that would say nothing beside the others."""
    if not 0 < args.hold_out < 1:
        raise InputError(f"--hold-out={args.hold_out:g} is not between 0 and 1")
    if not 0 < args.level < 1:
        raise InputError(f"--level={args.level:g} is not between 0 and 1")
    if args.bootstrap < 20:
        raise InputError(f"--bootstrap={args.bootstrap} is below 20, too few for an interval")
    if args.next is not None and args.next < 0:
        raise InputError(f"--next={args.next} is below 0")
    for flag in ("rate", "images"):
        value = getattr(args, flag)
        if value is not None and not value > 0:
            raise InputError(f"--{flag}={value:g} is not above 0")
    if args.budget is None:
        for flag in ("sweep", "trial", "narrow", "next"):
            if getattr(args, flag) is not None:
                raise InputError(f"--{flag} is about the next run for a budget; give --budget, too")
    if args.rate is not None and not any(
        (text or "").strip().lower().endswith("h") for text in (args.budget, args.trial)
    ):
        raise InputError(
            f"--rate={args.rate:g} turns hours into FLOPs, and --budget and --trial name none; leave it out"
        )
    if args.size != "params" and args.form in ("compute", "compute_shift"):
        raise InputError(f"--size={args.size} is about a law of size and data, not --form={args.form}; leave one out")
    if args.next == 0 and args.sweep is not None:
        raise InputError("--sweep names cells to propose, and --next=0 asks for none; leave one out")

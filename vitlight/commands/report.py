"""`vitlight report`: the parser, built with argparse alone, and what it calls."""

import argparse
import json
from pathlib import Path
from typing import Any

from vitlight.errors import InputError

__all__ = ["add_report_parser"]


def add_report_parser(subparsers: Any) -> None:
    """Add `report` to argparse `subparsers`; the handler, Namespace -> exit code, is left in `args.handler`."""
    parser = subparsers.add_parser(
        "report", help="one self-contained page, figures and CSV from runs, tables and published results"
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="run directories or folders of them, CSV files, W&B exports, published:models",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: report/ in the first folder)")
    parser.add_argument("--title", metavar="TEXT", help="heading of the page (default: the runs' names)")
    parser.add_argument(
        "--published",
        action="append",
        default=[],
        metavar="NAME",
        help="results of others over the charts: models, scaling_vit, ...; in no mean, in a law only with --fit-published",
    )
    parser.add_argument("--fit-published", action="store_true", help="laws are fitted to published results, too")
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=200,
        metavar="N",
        help="resampled fits behind a law's band (default: 200; 0: no law)",
    )
    parser.add_argument(
        "--wandb",
        nargs="?",
        const="vitlight",
        metavar="PROJECT",
        help="also as a W&B run with tables and plots, offline where there is no key (project: vitlight)",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object with the paths and counts in place of text"
    )

    parser.set_defaults(handler=_report)


def _report(args: argparse.Namespace) -> int:
    """Write the report and print where it lies; 0. InputError for arguments that don't fit."""
    if args.bootstrap < 0:
        raise InputError(f"--bootstrap {args.bootstrap} is no count of fits: give 0 or more")
    if args.fit_published and not args.bootstrap:
        raise InputError("--fit-published asks for laws, and --bootstrap 0 for none: leave one of them out")
    folder = args.out if args.out is not None else _default_folder(args.sources)
    from vitlight.analysis.report import write_files
    from vitlight.analysis.report_data import gather_report
    from vitlight.analysis.report_rates import state_rates

    report = gather_report(
        args.sources,
        folder,
        published=args.published,
        num_bootstrap=args.bootstrap,
        fit_published=args.fit_published,
        title=args.title,
    )
    page, pngs = write_files(report)
    shown = None
    if args.wandb:
        from vitlight.training.wandb_report import show_report

        tables = {"runs": report.runs, "summary": report.summary, "published": report.published}
        shown = show_report(page, report.title, tables, pngs, args.wandb)
    if args.json:
        counts = {
            "runs": int(report.summary["n"].sum()),
            "cells": len(report.summary),
            "published": len(report.published_points),
            "laws": len(report.panels),
        }
        print(json.dumps({"report": str(page)} | counts | {"wandb": shown}, indent=1))
        return 0
    print(f"report: {page}")
    for one in report.rates:
        for line in state_rates(one):
            print(f"learning rate: {line}")
    if shown:
        print(shown)
    return 0


def _default_folder(sources: list[str]) -> Path:
    """`report` in the first source that is a folder; beside nothing else, in the working directory."""
    return next((Path(source) / "report" for source in sources if Path(source).is_dir()), Path("report"))

"""`vitlight table`: the parser, built with argparse alone, and what it calls."""

import argparse
from pathlib import Path
from typing import Any

from vitlight.errors import InputError

__all__ = ["add_table_parser"]


def add_table_parser(subparsers: Any) -> None:
    """Add `table` to argparse `subparsers`; the handler, Namespace -> exit code, is left in `args.handler`."""
    text = "runs, CSV files, W&B exports and published results as one table; without a source, the published ones there are"
    parser: argparse.ArgumentParser = subparsers.add_parser("table", help=text, description=text)
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="run directories or folders of them, CSV files, W&B exports, published:NAME",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only rows with this value, or one of several (A,B); also != < <= > >=; may be given several times",
    )
    parser.add_argument(
        "--front",
        metavar="COLUMN",
        help="only rows that no comparable one beats: better top1 for no more of COLUMN (params, forward_macs, ...)",
    )
    parser.add_argument("--sort", metavar="COLUMN", help="rows by this column; --sort=-COLUMN begins with the largest")
    parser.add_argument("--columns", metavar="A,B,...", help="show these (default: the main ones that have values)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows with all their columns, exactly")
    parser.add_argument("--json", action="store_true", help="a JSON list of rows in place of the table")
    parser.set_defaults(handler=_table)


def _table(args: argparse.Namespace) -> int:
    """Print, and write where asked; 0. InputError for sources and columns that can't be used."""
    if not args.sources:
        for flag in ("where", "front", "sort", "columns", "csv"):
            if getattr(args, flag):
                raise InputError(
                    f"--{flag} is about the rows of a source, and none is named; add one: published:models"
                )
    from vitlight.analysis.table_view import choose_rows, published_rows, show, write_csv
    from vitlight.analysis.tables import load_table

    if not args.sources:
        show(published_rows(), ("source", "rows", "what"), as_json=args.json)
        return 0
    columns = tuple(name.strip() for name in args.columns.split(",")) if args.columns else None
    rows = choose_rows(load_table(args.sources), args.where, args.front, args.sort)
    show(rows, columns, as_json=args.json)
    if args.csv is not None:
        write_csv(rows, args.csv)
        if not args.json:
            print(f"table: {args.csv}")
    return 0

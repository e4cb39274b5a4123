"""The command line. Light to start: each command imports what it needs when it runs."""

import argparse
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NoReturn

from vitlight import __version__
from vitlight.data.commands import add_data_parser
from vitlight.errors import InputError, did_you_mean
from vitlight.sweep.commands import add_sweep_parser

__all__ = ["main"]

_EXPERIMENT = {
    "fit": "train one model, resume its run, or skip it where it is done",
    "validate": "exact accuracy of a checkpoint on the held-out part of the training shards",
    "test": "exact accuracy of a checkpoint on the official evaluation set",
}
_EXIT_CODES = "exit codes: 0 done, 1 failed, 2 bad input, 3 diverged. VITLIGHT_DEBUG=1 shows where an error arose."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Bad input is one line on standard error and 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except InputError as error:
        if os.environ.get("VITLIGHT_DEBUG") == "1":
            traceback.print_exc()
        print(f"vitlight: error: {_message(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output went away: `vitlight models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("vitlight: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


def _message(error: InputError) -> str:
    """The error's one line; one raised in a loader's worker comes wrapped in that worker's trace."""
    text = str(error)
    if text.startswith("Caught InputError"):
        text = text.rsplit("InputError: ", 1)[-1]
    return " ".join(text.split("\n"))


def _dispatch(args: list[str]) -> int:
    if args and args[0] in _EXPERIMENT:
        return _experiment(args)
    parser, commands = _parser()
    if args and not args[0].startswith("-") and args[0] not in commands:
        raise InputError(f"unknown command {args[0]!r}{did_you_mean(args[0], commands)}")
    parsed = parser.parse_args(args)
    handler: Callable[[argparse.Namespace], int] | None = getattr(parsed, "handler", None)
    if handler is None:
        parser.print_help()
        return 0 if not args else 2
    return handler(parsed)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with an argument in one line; its subcommands' parsers are of this class, too."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


def _parser() -> tuple[argparse.ArgumentParser, Collection[str]]:
    """The parser and the names of its commands."""
    parser = _Parser(
        prog="vitlight",
        description="Model-size x dataset-size sweeps of ViT, CoAtNet and CNNs, with exact accounting.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vitlight {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, what in _EXPERIMENT.items():
        commands.add_parser(name, help=what, add_help=False)
    models = commands.add_parser("models", help="every architecture with its parameters and forward MACs")
    models.add_argument("--image-size", type=int, metavar="N", help="pixels of a side (default: each arch's own)")
    models.add_argument("--family", choices=("vit", "coatnet", "resnet"), help="only this family")
    models.add_argument("--json", action="store_true", help="a JSON list of rows")
    models.set_defaults(handler=_models)
    add_data_parser(commands)
    add_sweep_parser(commands)
    report = commands.add_parser("report", help="one self-contained page, figures and CSV from run directories")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run directories, or folders of them")
    report.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RUNS/report)")
    report.set_defaults(handler=_report)
    return parser, commands.choices


def _experiment(args: list[str]) -> int:
    from vitlight.training.experiment import ExperimentCLI
    from vitlight.training.run import execute

    # Lightning's advice on how to configure Lightning: vitlight has decided these things.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for advice in (
        "does not have many workers",
        "callbacks used to create the checkpoint",
        "isinstance.treespec, LeafSpec",
    ):
        warnings.filterwarnings("ignore", message=f".*{advice}")
    return execute(ExperimentCLI(args))


def _models(args: argparse.Namespace) -> int:
    from vitlight.cost import model_table

    if args.image_size is not None and args.image_size < 1:
        raise InputError(f"--image-size={args.image_size} is not at least 1")
    rows = [row for row in model_table(args.image_size) if args.family in (None, row["family"])]
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("arch", "family", *("params [M]", "forward [GMACs]", "image size [px]"), box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        params = "-" if row["params"] is None else f"{row['params'] / 1e6:,.2f}"
        macs = "-" if row["forward_macs"] is None else f"{row['forward_macs'] / 1e9:,.4g}"
        table.add_row(row["arch"], row["family"], params, macs, str(row["image_size"]))
    Console().print(table)
    return 0


def _report(args: argparse.Namespace) -> int:
    from vitlight.analysis.report import write_report

    path = write_report(args.runs, args.out if args.out is not None else args.runs[0] / "report")
    print(f"report: {path}")
    return 0

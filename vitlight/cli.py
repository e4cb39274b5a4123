"""The command line. Light to start: each command imports what it needs when it runs."""

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vitlight import __version__
from vitlight.commands.convert import add_convert_parser
from vitlight.commands.export import add_export_parser
from vitlight.commands.inspect import add_inspect_parser
from vitlight.commands.law import add_law_parser
from vitlight.commands.predict import add_predict_parser
from vitlight.commands.probe import add_probe_parser
from vitlight.commands.report import add_report_parser
from vitlight.commands.table import add_table_parser
from vitlight.commands.transfer import add_transfer_parser
from vitlight.commands.wandb import add_wandb_parser
from vitlight.data.commands import add_data_parser
from vitlight.errors import InputError, did_you_mean
from vitlight.messages import say
from vitlight.sweep.commands import add_sweep_parser

if TYPE_CHECKING:
    from vitlight.training.experiment import ExperimentCLI

__all__ = ["main"]

_EXPERIMENT = {
    "fit": "train one model, resume its run, or skip it where it is done",
    "validate": "exact accuracy of a checkpoint on the held-out part of the training shards",
    "test": "exact accuracy of a checkpoint on the official evaluation set",
}
_EXIT_CODES = (
    "exit codes: 0 done, 1 failed, 2 bad input, 3 diverged, 75 stopped by a signal, to be started again, 130 interrupted. "
    "VITLIGHT_DEBUG=1 shows where an error arose."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Bad input is one line on standard error and 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    original, warnings.formatwarning = warnings.formatwarning, _format_warning
    had_ranks = _has_process_group()
    try:
        return _dispatch(args)
    except InputError as error:
        if os.environ.get("VITLIGHT_DEBUG") == "1":
            traceback.print_exc()
        say(f"vitlight: error: {_message(error)}")
        return 2
    except BrokenPipeError:  # the reader of our output went away: `vitlight models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        say("vitlight: interrupted; the same command goes on where this one stopped")
        return 130
    finally:
        warnings.formatwarning = original
        if not had_ranks and _has_process_group():
            # Threads of gloo that still run when the interpreter ends abort the process, some times in a hundred.
            sys.modules["torch.distributed"].destroy_process_group()


def _has_process_group() -> bool:
    """Without the second that importing torch takes."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What vitlight itself warns of is one line for its user; of other packages, where it comes from matters."""
    if Path(filename).is_relative_to(Path(__file__).parent) and category is UserWarning:
        return f"vitlight: warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _message(error: InputError) -> str:
    """The error's one line; one raised in a loader's worker comes wrapped in that worker's trace."""
    text = str(error)
    if text.startswith("Caught InputError"):
        text = text.rsplit("InputError: ", 1)[-1]
    return " ".join(text.split("\n"))


def _dispatch(args: list[str]) -> int:
    if args and args[0] in _EXPERIMENT:
        return _fit(args) if args[0] == "fit" else _evaluate(args)
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
    _add_models_parser(commands)
    add_data_parser(commands)
    add_sweep_parser(commands)
    add_table_parser(commands)
    add_transfer_parser(commands)
    add_report_parser(commands)
    add_law_parser(commands)
    add_wandb_parser(commands)
    add_inspect_parser(commands)
    add_probe_parser(commands)
    add_convert_parser(commands)
    add_predict_parser(commands)
    add_export_parser(commands)
    return parser, commands.choices


def _fit(args: list[str]) -> int:
    from vitlight.training.signals import StopSignals

    with StopSignals() as stop:  # before the other imports, which take seconds
        cli = _parse_experiment(args)
        from vitlight.training.run import fit

        return fit(cli, stop)


def _evaluate(args: list[str]) -> int:
    cli = _parse_experiment(args)
    from vitlight.training.evaluate import evaluate

    return evaluate(cli)


def _parse_experiment(args: list[str]) -> "ExperimentCLI":
    from vitlight.training.experiment import ExperimentCLI

    # Lightning's advice on how to configure Lightning: vitlight has decided these things.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for advice in (
        "does not have many workers",
        "The `srun` command is available",
        "callbacks used to create the checkpoint",
        "isinstance.treespec, LeafSpec",
    ):
        warnings.filterwarnings("ignore", message=f".*{advice}")
    return ExperimentCLI(args)


def _add_models_parser(commands: "argparse._SubParsersAction[_Parser]") -> None:
    models = commands.add_parser(
        "models", help="every architecture with its parameters and forward MACs; of one, where they lie and its memory"
    )
    models.add_argument("arch", nargs="?", metavar="ARCH", help="one architecture in detail")
    models.add_argument("--image-size", type=int, metavar="N", help="pixels of a side (default: each arch's own)")
    models.add_argument("--family", choices=("vit", "coatnet", "resnet"), help="only this family")
    models.add_argument("--option", action="append", metavar="KEY=VALUE", help="a setting of ARCH, as pool=gap")
    models.add_argument("--modules", action="store_true", help="a row for each module of ARCH")
    models.add_argument("--depth", type=int, metavar="D", help="modules down to this depth only")
    models.add_argument("--memory", action="store_true", help="estimate what training ARCH takes")
    models.add_argument("--batch-size", type=int, metavar="N", help="images a step on one device")
    models.add_argument("--precision", help="32, bf16-mixed, 16-mixed or bf16-true (default: 32)")
    models.add_argument("--optimizer", help="adamw or sgd (default: adamw)")
    models.add_argument("--checkpointing", action="store_true", help="with activation checkpointing by block")
    models.add_argument(
        "--keep-gradients", action="store_true", help="gradients stay between steps: DDP, or accumulated batches"
    )
    models.add_argument("--device", help="cpu or cuda (default: cpu)")
    models.add_argument("--json", action="store_true", help="a JSON list of rows, or of ARCH one object")
    models.set_defaults(handler=_models)


def _models(args: argparse.Namespace) -> int:
    from vitlight.cost.report import report_models

    return report_models(args)

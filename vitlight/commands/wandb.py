"""`vitlight wandb`: runs that have ended, shown on Weights & Biases. The parser is built with argparse alone."""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

from vitlight.errors import InputError

__all__ = ["add_wandb_parser"]


def add_wandb_parser(subparsers: Any) -> None:
    """Add `wandb` to argparse `subparsers`; the handler, Namespace -> exit code, is left in `args.handler`."""
    text = "show ended runs on Weights & Biases: the rows that it lacks, of runs it knows and of others"
    parser = subparsers.add_parser("wandb", help=text, description=text)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders of them: runs/quickstart")
    parser.add_argument("--anew", action="store_true", help="each as a new run of W&B, with all its rows")
    parser.add_argument(
        "--finish-seconds", type=float, default=600.0, metavar="S", help="how long W&B has for a run (default: 600)"
    )
    parser.add_argument("--json", action="store_true", help="a JSON list with an object for each run in place of text")
    parser.set_defaults(handler=_wandb)


def _wandb(args: argparse.Namespace) -> int:
    """One line a run; 0 where W&B has all rows of all of them, else 1. Runs that have not ended are counted, no more."""
    from vitlight.analysis.runs import find_run_dirs
    from vitlight.training.wandb_run import catch_up

    if not 0 <= args.finish_seconds <= 86_400:
        raise InputError(f"--finish-seconds={args.finish_seconds} is not from 0 to 86400 (a day)")
    found = find_run_dirs(args.runs)
    ended = [run_dir for run_dir in found if (run_dir / "result.json").is_file()]
    if not ended:
        raise InputError(f"none of the {len(found)} runs in {', '.join(args.runs)} has ended: there is no result.json")
    shown: list[dict[str, Any]] = []
    for run_dir in ended:
        with warnings.catch_warnings(action="ignore"):  # it is said below
            projection = catch_up(run_dir, args.finish_seconds, args.anew)
        facts = {"run_dir": str(run_dir), "rows": projection.num_rows, "problem": projection.problem}
        shown.append(facts | {"url": projection.url, "offline_folder": _offline_folder(run_dir, projection.url)})
        if not args.json:
            print(_line(shown[-1]))
    if args.json:
        print(json.dumps(shown, indent=1))
    elif len(ended) < len(found):
        print(f"left out: {len(found) - len(ended)} runs that have not ended")
    return 1 if any(one["problem"] for one in shown) else 0


def _offline_folder(run_dir: Path, url: str | None) -> str | None:
    """Where the run is waiting for `wandb sync`, if no server has it."""
    folders = sorted((run_dir / "wandb").glob("offline-run-*")) if url is None else []
    return str(folders[-1]) if folders else None


def _line(shown: dict[str, Any]) -> str:
    if shown["problem"]:
        return f"{shown['run_dir']}: W&B lacks rows: {shown['problem']}"
    if shown["url"]:
        return f"{shown['run_dir']}: W&B has all {shown['rows']} rows"
    return f"{shown['run_dir']}: {shown['rows']} rows in an offline folder, for `wandb sync {shown['offline_folder']}`"

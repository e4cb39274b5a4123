"""`vitlight transfer`: the parser, built with argparse alone, and what it calls."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError

if TYPE_CHECKING:
    from vitlight.analysis.transfer_table import TransferCell, TransferTable

__all__ = ["add_transfer_parser"]


def add_transfer_parser(subparsers: Any) -> None:
    """Add `transfer` to argparse `subparsers`; the handler, Namespace -> exit code, is left in `args.handler`."""
    text = "fine-tuning runs as one table, checkpoints by tasks, each at the settings that are best on held-out images"
    parser: argparse.ArgumentParser = subparsers.add_parser("transfer", help=text, description=text)
    parser.add_argument("sources", nargs="+", metavar="RUNS", help="run directories or folders of them")
    parser.add_argument(
        "--mean-class",
        default="",
        metavar="TASK,...",
        help="tasks whose accuracy is the mean over the classes, as is usual for pets and flowers",
    )
    parser.add_argument(
        "--final",
        type=Path,
        metavar="FILE.yaml",
        help="write a sweep that trains each cell's settings on all training images, for `vitlight sweep run`",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N - 1 of each cell of --final (default: 1)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row a cell")
    parser.add_argument("--json", action="store_true", help="a JSON list with an object a cell in place of the table")
    parser.set_defaults(handler=_transfer)


def _transfer(args: argparse.Namespace) -> int:
    """Print, and write where asked; 0. InputError for sources that can't be used."""
    if args.seeds is not None and args.final is None:
        raise InputError("--seeds is about the sweep that --final writes; add --final FILE.yaml, or leave it out")
    if args.seeds is not None and args.seeds < 1:
        raise InputError(f"--seeds {args.seeds} is not at least 1")
    from vitlight.analysis.transfer_table import build_transfer_table

    table = build_transfer_table(args.sources, [task.strip() for task in args.mean_class.split(",") if task.strip()])
    cells = [table.cells[row, task] for row in table.rows for task in table.tasks if (row, task) in table.cells]
    if args.final is not None:
        _write_final(args.final, cells, args.seeds or 1)
    if args.csv is not None:
        _write_csv(args.csv, cells)
    if args.json:
        print(json.dumps([_record(cell) for cell in cells], indent=1))
        return 0
    _show(table)
    if args.final is not None:
        print(f"{len(cells)} cells x {args.seeds or 1} seeds on all training images: vitlight sweep run {args.final}")
    return 0


def _record(cell: "TransferCell") -> dict[str, Any]:
    return {
        **{"checkpoint": cell.checkpoint, "arch": cell.arch, "image_size": cell.image_size, "task": cell.task},
        **{"top1_mean": cell.mean, "top1_std": cell.std, "n": len(cell.values), "top1_values": list(cell.values)},
        **{"lr": cell.lr, "num_settings": cell.num_settings, "val_top1": cell.val_top1, "is_edge": cell.is_edge},
        **{
            "eval_split": cell.eval_split,
            "num_eval_samples": cell.num_eval_samples,
            "runs": [str(path) for path in cell.runs],
        },
    }


def _show(table: "TransferTable") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(
        caption="top-1 in % on each task's test set, mean ± standard deviation over seeds (n), @ learning rate: the best on "
        "held-out images of as many as follow `of`; ! at an end of them",
        caption_justify="left",
    )
    for name in ("checkpoint", "arch", "px"):
        shown.add_column(name, justify="right" if name == "px" else "left", overflow="fold")
    for name in (*table.tasks, "mean"):
        shown.add_column(escape(name), justify="right", overflow="fold")
    for row in table.rows:
        checkpoint, arch, image_size = row
        mean = table.mean(row)
        texts = [_text(table.cells.get((row, task))) for task in table.tasks]
        shown.add_row(escape(checkpoint), arch, str(image_size), *texts, "" if mean is None else f"{100 * mean:.2f}")
    console = Console()
    if not console.is_terminal:  # in a pipe as wide as it needs to be, so that no value is cut
        console = Console(width=console.measure(shown, options=console.options.update(max_width=10_000)).maximum)
    console.print(shown)
    for line in table.left_out:
        console.print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)


def _text(cell: "TransferCell | None") -> str:
    if cell is None:
        return ""
    spread = "" if cell.std is None else f" ± {100 * cell.std:.2f}"
    rate = "" if cell.lr is None else f" @ {cell.lr:g}"
    chosen = f" of {cell.num_settings}{'!' if cell.is_edge else ''}" if cell.num_settings > 1 else ""
    split = "" if cell.eval_split == "test" else f" on {cell.eval_split}"
    return f"{100 * cell.mean:.2f}{spread} ({len(cell.values)}){rate}{chosen}{split}"


def _write_final(path: Path, cells: Sequence["TransferCell"], seeds: int) -> None:
    """A sweep with a cell for each of `cells` and each seed: its settings, and no image held out."""
    import yaml

    name = cells[0].runs[0].absolute().parent.name
    sweep = {
        "name": f"{name}_final",
        "program": "vitlight",
        "method": "grid",
        "metric": {"name": "test/top1", "goal": "maximize"},
        "command": ["${env}", "vitlight", "fit", "${args}"],
        "parameters": {
            "config": {"values": [str(cell.runs[0] / "experiment.yaml") for cell in cells]},
            "data.val_fraction": {"value": 0.0},
            "seed_everything": {"values": list(range(seeds))},
        },
    }
    head = (
        "# The settings that were chosen on held-out images, trained on all of them; written by `vitlight transfer`.\n"
        f"#   vitlight sweep run {path}\n"
    )
    _write("--final", path, head + yaml.safe_dump(sweep, sort_keys=False, width=120))


def _write_csv(path: Path, cells: Sequence["TransferCell"]) -> None:
    import csv
    import io

    text = io.StringIO()
    records = [_record(cell) for cell in cells]
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    for record in records:
        spaced = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in record.items()}
        writer.writerow(spaced)
    _write("--csv", path, text.getvalue())


def _write(flag: str, path: Path, text: str) -> None:
    from vitlight.analysis.whole_files import replace_whole

    try:
        replace_whole(path, lambda beside: beside.write_text(text))
    except OSError as error:
        raise InputError(f"{flag}={path} can't be written: {error.strerror}") from None

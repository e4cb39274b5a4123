"""A page as a W&B run: a report with its tables and plots, or any page with its figures. Offline where there is no key,
and never a prompt."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vitlight.training.wandb import is_offline

__all__ = ["show_page", "show_report"]

_NOT_SHOWN = "W&B: not shown, as WANDB_MODE=disabled asks"

# Axis of a scatter plot of the summary, and its heading. W&B draws numbers on linear axes unless told otherwise there.
_PLOTS = {
    "forward_macs": "top-1 against forward MACs per image",
    "params": "top-1 against parameters",
    "train_flops": "top-1 against training FLOPs (FLOP = half a MAC)",
    "num_train_samples": "top-1 against training images",
    "device_seconds_mean": "top-1 against device seconds of training",
}


def show_report(page: Path, title: str, tables: Mapping[str, pd.DataFrame], pngs: Sequence[Path], project: str) -> str:
    """Show a written report in one W&B run of job type `report`; returns a line that says where it is.

    It gets each table, scatter plots of the table `summary`, the PNGs and the page itself. WANDB_MODE and WANDB_PROJECT
    hold here as in a training run; a server that refuses leaves an offline run for `wandb sync`.
    """
    if (begun := _begin(page, f"report of {title}", "report", project)) is None:
        return _NOT_SHOWN
    import wandb

    run, refused = begun
    shown = {f"tables/{name}": _as_wandb_table(table) for name, table in tables.items() if len(table)}
    panels: dict[str, Any] = {f"figures/{path.stem}": wandb.Image(str(path)) for path in pngs}
    panels["report"] = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
    if "tables/summary" in shown:
        for column, heading in _PLOTS.items():
            if tables["summary"][column].notna().any():
                panels[f"plots/{column}"] = wandb.plot.scatter(shown["tables/summary"], column, "top1_mean", heading)
    run.log({**shown, **panels})
    run.summary.update({f"num_{name}": len(table) for name, table in tables.items()})
    return _end(run, refused)


def show_page(page: Path, title: str, pngs: Sequence[Path], project: str, kind: str) -> str:
    """Show a page and its figures, which lie in its folder or below, in one W&B run of job type `kind`; a line that
    says where it is, as of `show_report`."""
    if (begun := _begin(page, f"{kind} of {title}", kind, project)) is None:
        return _NOT_SHOWN
    import wandb

    run, refused = begun
    figures = {f"figures/{path.relative_to(page.parent).with_suffix('').as_posix()}": path for path in pngs}
    panels: dict[str, Any] = {name: wandb.Image(str(path)) for name, path in figures.items()}
    run.log({**panels, kind: wandb.Html(page.read_text(encoding="utf-8"), inject=False)})
    return _end(run, refused)


def _begin(page: Path, name: str, kind: str, project: str) -> tuple[Any, str] | None:
    """A run in the page's folder, and why a server refused it, if one did; None where W&B is turned off."""
    if os.environ.get("WANDB_MODE") == "disabled":
        return None
    import wandb

    given: dict[str, Any] = {
        "project": os.environ.get("WANDB_PROJECT", project),
        "name": name,
        "job_type": kind,
        "dir": str(page.parent.resolve()),
        "settings": wandb.Settings(silent=True, console="off", x_disable_stats=True),
    }
    if is_offline():
        return wandb.init(**given, mode="offline"), ""
    try:
        return wandb.init(**given), ""
    except (wandb.Error, OSError) as error:
        return wandb.init(**given, mode="offline"), f" ({' '.join(str(error).split())[:200]})"


def _end(run: Any, refused: str) -> str:
    """Where the run is, when all of it is written."""
    import wandb

    url, folder = run.url, Path(run.dir).parent
    run.finish()
    wandb.teardown()  # its service has written all files when it has ended, not before
    if url and not run.offline:
        return f"W&B: {url}"
    return f"W&B: offline{refused}; show it with `wandb sync {folder}`"


def _as_wandb_table(table: pd.DataFrame) -> Any:
    """Numbers stay numbers, exact integers too long for W&B's become floats, and what is missing becomes null."""
    import wandb

    plain = table.astype(object).where(table.notna(), None)
    rows: list[Any] = [
        [float(value) if isinstance(value, int) and abs(value) >= 1 << 53 else value for value in row]
        for row in plain.itertuples(index=False, name=None)
    ]
    return wandb.Table(columns=[str(name) for name in plain.columns], data=rows, allow_mixed_types=True)

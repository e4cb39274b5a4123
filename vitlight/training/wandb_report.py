"""A report as a W&B run: its tables, plots and page. Offline where there is no key, and never a prompt."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vitlight.training.wandb import is_offline

__all__ = ["show_report"]

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
    if os.environ.get("WANDB_MODE") == "disabled":
        return "W&B: not shown, as WANDB_MODE=disabled asks"
    import wandb

    given: dict[str, Any] = {
        "project": os.environ.get("WANDB_PROJECT", project),
        "name": f"report of {title}",
        "job_type": "report",
        "dir": str(page.parent.resolve()),
        "settings": wandb.Settings(silent=True, console="off", x_disable_stats=True),
    }
    refused = ""
    if is_offline():
        run = wandb.init(**given, mode="offline")
    else:
        try:
            run = wandb.init(**given)
        except (wandb.Error, OSError) as error:
            refused = f" ({' '.join(str(error).split())[:200]})"
            run = wandb.init(**given, mode="offline")
    shown = {f"tables/{name}": _as_wandb_table(table) for name, table in tables.items() if len(table)}
    panels: dict[str, Any] = {f"figures/{path.stem}": wandb.Image(str(path)) for path in pngs}
    panels["report"] = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
    if "tables/summary" in shown:
        for column, heading in _PLOTS.items():
            if tables["summary"][column].notna().any():
                panels[f"plots/{column}"] = wandb.plot.scatter(shown["tables/summary"], column, "top1_mean", heading)
    run.log({**shown, **panels})
    run.summary.update({f"num_{name}": len(table) for name, table in tables.items()})
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

"""Where a report's readers find the runs behind its numbers: paths relative to the page, and web pages."""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from vitlight.analysis.summary import SETTINGS, counted_runs

__all__ = ["cell_links", "row_keys", "run_link"]

_URL_COLUMNS = ("wandb_url", "url")


def run_link(run: Any, folder: Path) -> dict[str, str]:
    """`text`, and where known `href` (the run directory, relative to `folder`) and `url` (its W&B page) of a row of the
    run table. A URL that is not http or https is left out: it may be code."""
    seed = "seed ?" if pd.isna(run["seed"]) else f"seed {int(run['seed'])}"
    link = {"text": seed if pd.isna(run["run_id"]) else f"{seed}, {run['run_id']}"}
    if pd.notna(run["run_dir"]) and Path(str(run["run_dir"])).is_dir():
        relative = os.path.relpath(Path(str(run["run_dir"])).resolve(), folder.resolve())
        link["href"] = quote(Path(relative).as_posix()) + "/"
    for column in _URL_COLUMNS:
        value = run.get(column)
        if value is not None and pd.notna(value) and str(value).startswith(("https://", "http://")):
            link["url"] = str(value)
            break
    return link


def cell_links(runs: pd.DataFrame, summary: pd.DataFrame, folder: Path) -> dict[int, list[dict[str, str]]]:
    """The links of each cell's runs, by the cell's place in `summarise(runs)`."""
    counted = counted_runs(runs)
    places = {key: place for place, key in enumerate(row_keys(summary))}
    links: dict[int, list[dict[str, str]]] = {place: [] for place in places.values()}
    for key, (_, run) in zip(row_keys(counted), counted.iterrows(), strict=True):
        links[places[key]].append(run_link(run, folder))
    return {place: sorted(found, key=lambda link: link["text"]) for place, found in links.items()}


def row_keys(frame: pd.DataFrame) -> list[tuple[Hashable, ...]]:
    """Each row's values of SETTINGS, None where one is missing: what tells cells apart."""
    values = frame[list(SETTINGS)].astype(object)
    return list(values.where(values.notna(), None).itertuples(index=False, name=None))

"""What a table of runs can't tell, said before anybody concludes it: each sentence computed from the runs."""

from collections.abc import Sequence

import pandas as pd

from vitlight.analysis.findings import state_findings
from vitlight.analysis.quantities import format_count, format_si
from vitlight.analysis.summary import COMPARABLE, choose_settings, counted_runs

__all__ = ["state_limits"]


def state_limits(runs: pd.DataFrame, summary: pd.DataFrame, warned_fits: Sequence[str] = ()) -> list[str]:
    """One sentence for each conclusion that these runs don't bear. `summary` is `summarise(runs)`; `warned_fits` names
    the laws that carry warnings."""
    if summary.empty:
        return []
    chosen = choose_settings(summary)
    limits = [
        *_undecided(summary),
        *_spread(chosen),
        *_holes(chosen),
        *_reach(chosen),
        *_tuning(summary, chosen),
        *_duration(chosen),
        *_devices(counted_runs(runs)),
        *_lost(runs),
    ]
    if warned_fits:
        limits.append(
            f"What larger runs would give in {', '.join(warned_fits)}: the law fitted there carries the warnings beside it."
        )
    return limits


def _undecided(summary: pd.DataFrame) -> list[str]:
    open_titles = [found.title for found in state_findings(summary) if "ahead by mean" in found.title]
    if not open_titles:
        return []
    return [f"Which family is best, where it says “ahead by mean”: {'; '.join(open_titles)}."]


def _spread(chosen: pd.DataFrame) -> list[str]:
    single = int((chosen["n"] == 1).sum())
    if not single:
        return []
    of = f"{single} of {format_count(len(chosen), 'cell')}"
    return [f"How much of {of} is luck: there is one seed each. Two or more seeds would tell."]


def _holes(chosen: pd.DataFrame) -> list[str]:
    """Cells of the grid models x data sizes that have no run: what changes along the grid's edges mixes both."""
    missing, total = 0, 0
    for _, cells in chosen[chosen["num_train_samples"].notna()].groupby(list(COMPARABLE), dropna=False, sort=False):
        num_models = len(cells[["arch", "params", "forward_macs"]].drop_duplicates())
        num_sizes = cells["num_train_samples"].nunique()
        total += num_models * num_sizes
        missing += num_models * num_sizes - len(cells)
    if not missing:
        return []
    return [f"What {missing} of the grid's {format_count(total, 'cell')} would give: they have no run."]


def _reach(chosen: pd.DataFrame) -> list[str]:
    parts = []
    for column, what in (("num_train_samples", "training images"), ("params", "parameters")):
        known = chosen[column].dropna()
        if len(known):
            low, high = format_si(int(known.min())), format_si(int(known.max()))
            parts.append(f"{low} {what}" if low == high else f"{low} to {high} {what}")
    return [f"Anything outside what was run: {' and '.join(parts)}, on this data alone."] if parts else []


def _tuning(summary: pd.DataFrame, chosen: pd.DataFrame) -> list[str]:
    """Equal settings for all are fair to none: the setting that suits one family may not suit another."""
    untuned = chosen[chosen["num_settings"] == 1]
    if untuned.empty:
        return []
    of = "every cell" if len(untuned) == len(chosen) else f"{len(untuned)} of {format_count(len(chosen), 'cell')}"
    same = summary["lr"].nunique(dropna=False) == 1 and len(chosen) > 1
    text = f"What tuning would change: {of} was trained with one setting only"
    return [text + (", and all of them with one learning rate." if same else ".")]


def _duration(chosen: pd.DataFrame) -> list[str]:
    """Runs of different data sizes that saw different numbers of samples: more data came with more training."""
    known = chosen[chosen["num_train_samples"].notna() & chosen["samples_seen"].notna()]
    per_size = known.groupby("num_train_samples")["samples_seen"].median().astype(float)
    if len(per_size) < 2 or per_size.max() <= 1.1 * per_size.min():
        return []
    low, high = format_si(per_size.min()), format_si(per_size.max())
    return [
        f"How much of the gain from more images is longer training: data sizes differ in samples seen, {low} to {high}."
    ]


def _devices(counted: pd.DataFrame) -> list[str]:
    kinds = sorted(str(device) for device in counted["device"].dropna().unique())
    limits = []
    if len(kinds) > 1 and counted["device_seconds"].notna().any():
        limits.append(f"What a device-hour or an image a second is worth across {', '.join(kinds)}: they aren't alike.")
    elif counted["images_per_second"].notna().any():
        limits.append(
            "Which model is fastest elsewhere: device-hours and images/s hold for this machine, batch size and load."
        )
    return limits


def _lost(runs: pd.DataFrame) -> list[str]:
    lost = runs[runs["status"].isin(["diverged", "failed"])]
    if lost.empty:
        return []
    names = list(dict.fromkeys(str(arch) for arch in lost["arch"].dropna()))
    named = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return [
        f"How {named or 'the lost runs'} would have done: {format_count(len(lost), 'run')} diverged or failed "
        f"({100 * len(lost) / len(runs):.0f} % of all), and means are of the runs that came through."
    ]

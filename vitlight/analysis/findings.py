"""What the numbers support, in plain sentences computed from them, and what makes them not comparable."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from vitlight.analysis.quantities import format_commit, format_count, format_points, format_top1
from vitlight.analysis.summary import COMPARABLE, SETTINGS, choose_settings, counted_runs

__all__ = ["Comparison", "Finding", "compare", "pool_spread", "state_caveats", "state_findings"]

Verdict = Literal["supported", "open", "one seed"]
_LABELS: dict[Verdict, str] = {"supported": "supported", "open": "too close to call", "one seed": "one seed"}


@dataclass(frozen=True)
class Finding:
    """One statement; `label` is its verdict in words."""

    title: str
    text: str
    verdict: Verdict
    label: str


@dataclass(frozen=True)
class Comparison:
    """Two cells' top1, first minus second, as fractions.

    interval: 95 % interval of the gap over seeds; None where a cell has one seed. eval_noise: half a 95 % interval
    from the finite evaluation set alone, taking the two as independent (they share images, so it errs on the wide
    side).
    """

    gap: float
    interval: tuple[float, float] | None
    eval_noise: float

    @property
    def verdict(self) -> Verdict:
        """`supported` if the gap is beyond both the seeds' spread and evaluation noise."""
        if self.interval is None:
            return "one seed"
        beyond_seeds = self.interval[0] > 0 or self.interval[1] < 0
        return "supported" if beyond_seeds and abs(self.gap) > self.eval_noise else "open"


def pool_spread(cells: pd.DataFrame) -> pd.DataFrame:
    """Add `pooled_variance` and `pooled_freedom`: top1's variance over seeds, pooled over the cells of one data size.

    Two or three seeds say little about one cell's spread; taking it as equal among models trained on equally many
    images makes use of all of them. Both are 0 where no cell of the size has two seeds.
    """
    freedom = cells["n"].astype(int) - 1
    squares = (freedom * cells["top1_std"].astype(float) ** 2).fillna(0.0)
    sums = pd.DataFrame({"freedom": freedom, "squares": squares}).groupby(cells["num_train_samples"]).transform("sum")
    return cells.assign(pooled_variance=sums["squares"] / sums["freedom"].clip(lower=1), pooled_freedom=sums["freedom"])


def compare(first: Any, second: Any) -> Comparison:
    """Compare two rows that `pool_spread` returned (anything indexed by its column names), by Student's t where both
    are of one data size and by Welch's where each has its own pooled variance."""
    rows = (first, second)
    gap = float(first["top1_mean"] - second["top1_mean"])
    errors = [row["top1_eval_standard_error"] for row in rows]
    eval_noise = 1.96 * math.hypot(*(0.0 if pd.isna(error) else float(error) for error in errors))
    if min(first["n"], second["n"]) < 2:
        return Comparison(gap, None, eval_noise)
    variances = [float(row["pooled_variance"]) / int(row["n"]) for row in rows]
    total = sum(variances)
    if total == 0:
        return Comparison(gap, (gap, gap), eval_noise)
    freedom = float(first["pooled_freedom"])
    if first["num_train_samples"] != second["num_train_samples"]:
        freedom = total**2 / sum(v**2 / float(row["pooled_freedom"]) for v, row in zip(variances, rows, strict=True))
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(total)
    return Comparison(gap, (gap - half, gap + half), eval_noise)


def state_findings(summary: pd.DataFrame) -> list[Finding]:
    """Statements about each comparable set of cells: the best family per data size, then what more images and a
    larger model brought. Empty where nothing can be compared; cells of a table that lacks family or data size can't."""
    found = []
    known = summary[summary["num_train_samples"].notna() & summary["family"].notna()]
    sets = list(choose_settings(known).groupby(list(COMPARABLE), dropna=False, sort=False)) if len(known) else []
    for number, (_, cells) in enumerate(sets, start=1):
        prefix = f"Set {number}: " if len(sets) > 1 else ""
        pooled = pool_spread(cells)
        for _, at_size in pooled.groupby("num_train_samples"):
            found += _best_family(prefix, at_size)
        found += _effect(prefix + "More images", pooled, ["arch", "params", "forward_macs"], "num_train_samples")
        found += _effect(prefix + "Larger models", pooled, ["family", "num_train_samples"], "forward_macs")
    return found


def _best_family(prefix: str, cells: pd.DataFrame) -> list[Finding]:
    if cells["family"].nunique() < 2:
        return []
    best = cells.loc[cells.groupby("family")["top1_mean"].idxmax()].sort_values("top1_mean", ascending=False)
    first, second = best.iloc[0], best.iloc[1]
    result = compare(first, second)
    noise = f"evaluation noise ({format_points(result.eval_noise)})"
    if result.interval is None:
        why = f"With one seed no spread is known, so the order may be luck. The gap also carries {noise}."
    elif result.verdict == "supported":
        why = f"Neither the seeds' spread (interval {_span(result.interval)}) nor {noise} explains that."
    elif result.interval[0] > 0:
        why = f"The seeds' spread doesn't explain that (interval {_span(result.interval)}), but {noise} can."
    else:
        why = f"The seeds' spread alone can explain that (interval {_span(result.interval)})."
    lead = "leads" if result.verdict == "supported" else "is ahead by mean"
    return [
        Finding(
            f"{prefix}{first['family']} {lead} at {int(first['num_train_samples']):,} images",
            f"{_cell(first)} against {_cell(second)}, the best {second['family']}: {format_points(result.gap)}. {why}",
            result.verdict,
            _LABELS[result.verdict],
        )
    ]


def _effect(title: str, cells: pd.DataFrame, ladder: list[str], axis: str) -> list[Finding]:
    """Whether top1 rose from the low to the high end of `axis`, on each ladder of cells that share the rest."""
    results = []
    for _, steps in cells.groupby(ladder, dropna=False, sort=False):
        ends = steps.sort_values([axis, "top1_mean"])
        if ends[axis].nunique() > 1:
            results.append(compare(ends.iloc[-1], ends.iloc[0]))
    if not results:
        return []
    num_raised = sum(result.gap > 0 for result in results)
    num_clear = sum(result.gap > 0 and result.verdict == "supported" for result in results)
    median = 100 * float(np.median([result.gap for result in results]))
    is_data = axis == "num_train_samples"
    what = (
        ("the fewest to the most images", "model")
        if is_data
        else ("the smallest to the largest model", "family at a data size")
    )
    text = f"From {what[0]}, mean top-1 changed by {median:+.1f} points in the median {what[1]}. "
    if all(result.interval is None for result in results):
        verdict: Verdict = "one seed"
        label = _LABELS[verdict]
        text += "With one seed no spread is known."
    else:
        verdict = "supported" if num_clear == len(results) else "open"
        label = f"{num_clear} of {len(results)} clear"
        text += f"{num_clear} of the {num_raised} rises exceed both the seeds' spread and evaluation noise."
    return [Finding(f"{title} raised top-1 in {num_raised} of {len(results)} cases", text, verdict, label)]


def _cell(row: pd.Series) -> str:
    n = int(row["n"])
    return (
        f"{row['arch']} {format_top1(float(row['top1_mean']), float(row['top1_std']) if n > 1 else None)} % (n = {n})"
    )


def _span(interval: tuple[float, float]) -> str:
    low, high = (f"{100 * end:+.1f}".replace("-", "\u2212") for end in interval)
    return f"{low} to {high} points"


def state_caveats(runs: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """One sentence for each reason not to take the tables at face value; empty for one clean sweep.

    `summary` is `summarise(runs)`.
    """
    counted = counted_runs(runs)
    caveats = []
    kinds = {"data_digest": "data sets", "eval_split": "evaluation splits", "image_size": "image sizes"}
    for column, kind in kinds.items():
        values = [str(value)[:12] for value in counted[column].drop_duplicates()]
        if len(values) > 1:
            caveats.append(
                f"The runs are on {len(values)} {kind} ({', '.join(values)}): compare them only within one. "
                "Tables and statements keep them apart; the charts do not."
            )
    if (counted["eval_split"] == "val").any():
        caveats.append("There is no test set for some runs: their top-1 is on val, the split that choices are made on.")
    commits = counted["commit"].dropna().unique()
    if len(commits) > 1:
        named = ", ".join(format_commit(str(commit)) for commit in commits)
        caveats.append(f"The runs come from {len(commits)} commits ({named}).")
    repeats = int((runs["status"] == "done").sum()) - len(counted)
    if repeats:
        caveats.append(f"{format_count(repeats, 'run')} found in a second folder too: each is counted once.")
    twins = counted.duplicated([*SETTINGS, "seed"], keep=False).sum()
    if twins:
        caveats.append(
            f"{format_count(int(twins), 'run')} share settings and seed with another: they differ in something "
            "that the columns don't show, so those cells' spread is not over seeds alone."
        )
    set_back = counted.loc[counted["rollbacks"].notna(), "run_id"]
    if len(set_back):
        caveats.append(
            f"{format_count(len(set_back), 'run')} went back to an earlier step after diverging, and on at a lower learning "
            f"rate than tables show: {', '.join(map(str, set_back))}."
        )
    chosen = choose_settings(summary)
    if (chosen["num_settings"] > 1).any():
        by_top1 = (chosen["chosen_by"] == "top1").any()
        how = "top1 itself, which flatters the winner" if by_top1 else "mean val_top1"
        caveats.append(f"Some cells were trained with several settings; tables and lines show the best by {how}.")
    return caveats + _state_accounting(counted)


def _state_accounting(counted: pd.DataFrame) -> list[str]:
    """The sums that must hold in every result, and the runs where they don't."""
    wrong_flops, wrong_top1 = [], []
    for run in counted.to_dict("records"):
        told = [run[column] for column in ("train_flops", "forward_macs", "samples_seen")]
        if pd.notna(told).all() and told[0] != 6 * told[1] * told[2]:
            wrong_flops.append(run["run_id"])
        counts_known = pd.notna(run["top1_count"]) and pd.notna(run["num_eval_samples"])
        if counts_known and round(run["top1"] * run["num_eval_samples"], 4) != run["top1_count"]:
            wrong_top1.append(run["run_id"])
    caveats = []
    if wrong_flops:
        caveats.append(f"train_flops is not 6 × forward_macs × samples_seen in {', '.join(map(str, wrong_flops))}.")
    if wrong_top1:
        caveats.append(f"top1 is not top1_count / num_eval_samples in {', '.join(map(str, wrong_top1))}.")
    return caveats

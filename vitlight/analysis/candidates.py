"""Runs that could be made next: cells of a sweep file without a result, or a ladder of the family's sizes x durations."""

import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vitlight.analysis.advice import Candidate
from vitlight.analysis.points import PointSet
from vitlight.analysis.quantities import format_si
from vitlight.errors import InputError
from vitlight.models import arch_family, build_model, list_archs
from vitlight.models.coatnet import STUDY

__all__ = ["CountMacs", "Sizes", "known_sizes", "ladder", "sweep_cells"]

# arch -> its params and forward MACs as the runs train it: at their resolution, channels and classes.
Sizes = Mapping[str, tuple[int, int]]
# (arch, image_size, in_channels, num_classes) -> forward MACs; handed in, for analysis doesn't import cost.
CountMacs = Callable[[str, int, int, int], int]

# The ladder goes this far beyond what was run, up and down in size, up in duration.
SIZE_REACH = 4.0
DURATION_STEPS = (2, 4)
SAME = 0.01


def known_sizes(members: PointSet, count_macs: CountMacs) -> Sizes:
    """Listed architectures of the runs' families within SIZE_REACH of their parameters, and those of the runs themselves.

    Counted at the runs' resolution, channels and classes; where runs differ in these, or don't say, only their own
    architectures are known.
    """
    runs = members.runs
    own: dict[str, tuple[int, int]] = {}
    for arch, params, macs in runs[["arch", "params", "forward_macs"]].dropna().itertuples(index=False, name=None):
        own.setdefault(str(arch), (int(params), int(macs)))
    formats = [_only(runs, column) for column in ("image_size", "in_channels", "num_classes")]
    if not own or None in formats:
        return own
    image_size, in_channels, num_classes = (int(value) for value in formats)
    params = [size for size, _ in own.values()]
    found = dict(own)
    families = set(runs["family"].dropna())
    for arch in list_archs():
        if arch in own or arch_family(arch) not in families or not _is_alike(arch, own):
            continue
        try:
            size = _count_params(arch, image_size, in_channels, num_classes)
            if min(params) / SIZE_REACH <= size <= max(params) * SIZE_REACH:
                found[arch] = size, count_macs(arch, image_size, in_channels, num_classes)
        except InputError:  # not at this resolution
            continue
    return found


def _is_alike(arch: str, own: Sizes) -> bool:
    """Whether it may stand beside them: ladders for small images beside runs of these, no study's variant, no hybrid."""
    return any(("_nano" in name) == ("_nano" in arch) for name in own) and arch not in STUDY and arch[:5] != "vit_r"


def _count_params(arch: str, image_size: int, in_channels: int, num_classes: int) -> int:
    import torch

    with torch.device("meta"):
        model = build_model(arch, num_classes, image_size, in_channels=in_channels)
    return sum(parameter.numel() for parameter in model.parameters())


def _only(runs: pd.DataFrame, column: str) -> Any:
    values: Any = runs[column].dropna().unique() if column in runs else []
    return values[0] if len(values) == 1 else None


def sweep_cells(rows: Iterable[Mapping[str, Any]], runs: pd.DataFrame, size: str) -> list[Candidate]:
    """The cells, given as `vitlight sweep plan --json` gives them, whose run has no result in the table."""
    finished = set(runs.loc[(runs["status"] == "done").fillna(False), "run_id"].dropna()) if "run_id" in runs else set()
    return [
        Candidate(
            name=_name(row["arch"], row["num_train_samples"], row["horizon_samples"]) + f", seed {row['seed']}",
            params=float(row[size]),
            samples=float(row["horizon_samples"]),
            unique_samples=float(min(row["horizon_samples"], row["num_train_samples"])),
            train_flops=float(row["train_flops"]),
            command=f"vitlight {shlex.join(row['args'])}",
        )
        for row in rows
        if row["run_id"] not in finished
    ]


def ladder(members: PointSet, sizes: Sizes, size: str) -> list[Candidate]:
    """Every architecture x (images, images seen) of the runs, and x the most images seen 2 and 4 times as long, but for
    what was run already."""
    runs = members.runs[["arch", "num_train_samples", "samples_seen"]].dropna()
    done = [(str(arch), int(images), int(seen)) for arch, images, seen in runs.itertuples(index=False, name=None)]
    if not done:
        return []
    most_images, most_seen = max(images for _, images, _ in done), max(seen for _, _, seen in done)
    places = {(images, seen) for _, images, seen in done}
    places |= {(most_images, most_seen * times) for times in DURATION_STEPS}
    candidates = []
    for arch, (params, macs) in sizes.items():
        for images, seen in sorted(places):
            if any(arch == a and images == i and abs(seen - s) <= SAME * seen for a, i, s in done):
                continue
            candidates.append(
                Candidate(
                    name=_name(arch, images, seen),
                    params=float({"params": params, "forward_macs": macs}[size]),
                    samples=float(seen),
                    unique_samples=float(min(seen, images)),
                    train_flops=6.0 * macs * seen,
                    command=fit_command(members.runs, arch, images, seen),
                )
            )
    return candidates


def fit_command(runs: pd.DataFrame, arch: str, num_train_samples: int, samples: int) -> str:
    """`vitlight fit` with the settings of the run most like it: of the same data, then arch, then duration.

    Published results have no settings: their command names the base experiment, and the data have to be added.
    """
    settings = ["--config=experiments/base.yaml"]
    arguments = [f"--model.arch={arch}", f"--model.duration.samples={samples}"]
    data = [f"--data.num_train_samples={num_train_samples}"]
    if "run_dir" in runs and (own := runs[runs["run_dir"].notna()]).shape[0]:
        unlike = pd.DataFrame(
            {
                "data": own["num_train_samples"] != num_train_samples,
                "arch": own["arch"] != arch,
                "samples": (own["samples_seen"].astype(float) - samples).abs(),
            }
        ).sort_values(["data", "arch", "samples"], kind="stable")
        like = own.loc[unlike.index[0]]
        settings = [f"--config={Path(like['run_dir']) / 'experiment.yaml'}"]
        arguments += [
            "--model.duration.epochs=null",
            "--model.duration.train_flops=null",
            "--model.duration.min_samples=0",
        ]
        if like["num_train_samples"] == num_train_samples:
            data = []
        else:
            data += ["--data.train_fraction=null", "--data.num_train_samples_per_class=null"]
    return shlex.join(["vitlight", "fit", *settings, *arguments, *data])


def _name(arch: str, images: int, seen: int) -> str:
    return f"{arch}, {format_si(images)} images" + (f", {format_si(seen)} seen" if seen != images else "")

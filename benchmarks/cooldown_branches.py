"""Five durations from one trunk beside five separate cosine runs: what they cost, and what accuracy they reach.

    python benchmarks/cooldown_branches.py --out OUT --search --markdown docs/branches.md
    python benchmarks/cooldown_branches.py --out OUT --markdown docs/branches.md

`--search` tries peak rates for both schedules instead, on a tenth of the training images that it holds out.
Runs sweeps/cooldown_branches.yaml and the same sweep under a cosine with the same warm-up and peak rate, both resumable, and
compares the mean of each duration's seeds. It counts training FLOPs, not seconds, so other work on the machine changes
nothing. The data are expected where the sweep file says.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pages import write_measured

from vitlight.analysis.runs import load_runs

HERE = Path(__file__).resolve().parent.parent
RATES = [0.004, 0.008, 0.016, 0.032]
SEARCH_SAMPLES = [60_000, 180_000]


def cosine_sweep(branches: Path, out: Path) -> Path:
    """The sweep file with the cosine of the experiment instead of the schedule of the branches, and with its warm-up."""
    content = yaml.safe_load(branches.read_text())
    warmup = yaml.safe_load((HERE / "experiments" / "wsd.yaml").read_text())["model"]["schedule"]["warmup_samples"]
    content["name"] += "_cosine"
    content["command"].remove("--config=experiments/wsd.yaml")
    content["parameters"] |= {
        "model.schedule.warmup_samples": {"value": warmup},
        "model.schedule.warmup_fraction": {"value": "null"},
    }
    return write_sweep(content, out)


def search_sweep(branches: Path, out: Path) -> Path:
    """Two of its durations and seeds at several rates, judged on held-out training images; the test set isn't read."""
    content = yaml.safe_load(branches.read_text())
    content["name"] = "rate_search"
    content["parameters"] |= {
        "model.duration.samples": {"values": SEARCH_SAMPLES},
        "model.optimizer.lr": {"values": RATES},
        "seed_everything": {"values": [0, 1]},
        "data.val_fraction": {"value": 0.1},
        "data.test": {"value": "null"},
        "run.num_evaluations": {"value": 1},
    }
    return write_sweep(content, out)


def write_sweep(content: dict[str, Any], out: Path) -> Path:
    path = out / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run_sweep(path: Path, out: Path, jobs: int) -> pd.DataFrame:
    subprocess.run(
        [sys.executable, "-m", "vitlight", "sweep", "run", str(path), "--root", str(out), "--jobs", str(jobs)],
        check=True,
    )
    runs = load_runs(out / yaml.safe_load(path.read_text())["name"])
    assert (runs.status == "done").all(), runs[["run_id", "status", "reason"]]
    return runs


def render(branches: pd.DataFrame, cosine: pd.DataFrame) -> str:
    lines = [
        "| images seen | branch: own train FLOPs | cosine: train FLOPs | branch: top-1, % | cosine: top-1, % | difference |",
        "|---|---|---|---|---|---|",
    ]
    for samples, group in branches.groupby("horizon_samples"):
        other = cosine[cosine.horizon_samples == samples]
        own, its = group.own_train_flops.iloc[0], other.train_flops.iloc[0]
        mine, theirs = 100 * group.top1.astype(float), 100 * other.top1.astype(float)
        lines.append(
            f"| {samples:,} | {own:.3e} | {its:.3e} | {mine.mean():.2f} ({mine.min():.2f} to {mine.max():.2f}) | "
            f"{theirs.mean():.2f} ({theirs.min():.2f} to {theirs.max():.2f}) | {mine.mean() - theirs.mean():+.2f} |"
        )
    share = branches.own_train_flops.sum() / cosine.train_flops.sum()
    seeds = branches.seed.nunique()
    lines += [
        "",
        f"Mean (least to most) of {seeds} seeds. All branches cost {share:.3f} of the cosine runs' training FLOPs; "
        f"vitlight at {branches.commit.iloc[0]}, torch {yaml.safe_load(branches.versions.iloc[0])['torch']}, "
        f"{branches.device.iloc[0]}.",
    ]
    return "\n".join(lines) + "\n"


def render_search(branches: pd.DataFrame, cosine: pd.DataFrame) -> str:
    lines = ["| schedule | images seen | " + " | ".join(map(str, RATES)) + " |", "|---|---|" + "---|" * len(RATES)]
    for name, runs in (("branches", branches), ("cosine", cosine)):
        for samples, group in runs.groupby("horizon_samples"):
            means = [100 * group[group.lr == rate].top1.astype(float).mean() for rate in RATES]
            lines.append(f"| {name} | {samples:,} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    num_images = int(branches.num_eval_samples.iloc[0])
    lines += ["", f"Top-1 in % on {num_images:,} held-out training images by peak rate, mean of 2 seeds."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="root of the runs")
    parser.add_argument("--search", action="store_true", help="try peak rates instead")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--markdown", type=Path, help="a page whose part between the marks is replaced")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    branches = HERE / "sweeps" / "cooldown_branches.yaml"
    if arguments.search:
        branches = search_sweep(branches, arguments.out)
    tables = [
        run_sweep(path, arguments.out, arguments.jobs) for path in (branches, cosine_sweep(branches, arguments.out))
    ]
    page = render_search(*tables) if arguments.search else render(*tables)
    print(page)
    if arguments.markdown:
        write_measured(arguments.markdown, page, "search" if arguments.search else "measured")


if __name__ == "__main__":
    main()

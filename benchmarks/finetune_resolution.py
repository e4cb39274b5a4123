"""Trained at 28 px, finetuned at 56: what resizing costs at first, and what finetuning gives, on Fashion-MNIST.

    python benchmarks/finetune_resolution.py --data data/fashion_mnist --out OUT --markdown docs/transfer.md

For each network and seed: trained at 28 px, with crops of 8 to 100 % of the area as published recipes have them; that
checkpoint tested at 56 px as it is, with its position embeddings or relative biases resized; finetuned at 56 px; and, for
as many more images, at 28 px, so that a gain of more training isn't taken for one of more pixels. The larger images are
the same 28 x 28 pixels, enlarged: there is nothing more to see in them. Nothing is chosen by the test set: rates are one
for each network and phase. Every run is resumable and done once.
"""

import argparse
import contextlib
import io
import json
import statistics
from pathlib import Path
from typing import Any

from pages import cpu_name, write_measured

from vitlight.cli import main as vitlight
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run

HERE = Path(__file__).resolve().parent.parent
# The settings of finetuning: ViT's and, but for the rate, CoAtNet's. That one's average of 0.9999 forgets nothing of its
# start within some hundred steps, so here it is 0.98.
SGD = (
    *("--model.optimizer.name=sgd", "--model.optimizer.momentum=0.9", "--model.optimizer.lr=0.03"),
    *("--model.optimizer.weight_decay=0", "--model.schedule.warmup_fraction=0.1"),
)
ADAMW = (
    *("--model.optimizer.lr=5e-4", "--model.optimizer.weight_decay=1e-8", "--model.schedule.name=constant"),
    *("--model.schedule.warmup_samples=null", "--model.schedule.warmup_fraction=null", "--model.ema_decay=0.98"),
)
LEARNED, FIXED = "{posemb: learned}", "{posemb: sincos2d}"
# By label: architecture, its options at 28 px and at 56, how it is finetuned.
NETWORKS = {
    "vit_nano1, learned positions": ("vit_nano1", LEARNED, LEARNED, SGD),
    "coatnet_nano1": ("coatnet_nano1", "{}", "{}", ADAMW),
    "vit_nano1, fixed positions": ("vit_nano1", FIXED, FIXED, SGD),
    # What a network gets that computes them anew: half of the coordinates are beyond those it was trained on.
    "the same, positions computed anew": ("vit_nano1", FIXED, "{posemb: sincos2d, posemb_grid: 14}", SGD),
}


def model_options(network: str, image_size: int) -> str:
    _, at_28, at_56, _ = NETWORKS[network]
    return f"--model.model_options={at_28 if image_size == 28 else at_56}"


def fit(
    arguments: argparse.Namespace, network: str, seed: int, image_size: int, name: str, samples: int, *options: str
) -> RunDirectory:
    args = [
        "fit",
        f"--config={HERE / 'experiments' / 'base.yaml'}",
        f"--config={HERE / 'experiments' / 'fashion_mnist.yaml'}",
        f"--data.train={arguments.data / 'train'}",
        f"--data.test={arguments.data / 'test'}",
        f"--model.arch={NETWORKS[network][0]}",
        model_options(network, image_size),
        f"--data.image_size={image_size}",
        f"--seed_everything={seed}",
        f"--model.duration={{epochs: null, samples: {samples}, min_samples: 0}}",
        f"--run.root={arguments.out}",
        f"--run.name={name}",
        "--run.wandb=false",
        "--run.keep_checkpoints=1",
        "--trainer.accelerator=cpu",
        *options,
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        code = vitlight(args)
    assert code == 0, f"{' '.join(args)} ended with {code}"
    return RunDirectory(resolve_run(args).run_dir)


def tested_at(run: RunDirectory, network: str, image_size: int) -> float:
    """Top-1 of the run's last checkpoint on the test set at that size, with nothing trained."""
    known = run.path / f"tested_at_{image_size}_{list(NETWORKS).index(network)}.json"
    if not known.exists():
        checkpoint = max(run.checkpoints.glob("step-*.ckpt"))
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            size = f"--data.image_size={image_size}"
            code = vitlight(["test", f"--ckpt_path={checkpoint}", size, model_options(network, image_size)])
        assert code == 0
        known.write_text(out.getvalue().splitlines()[-1])
    return float(json.loads(known.read_text())["top1"])


def measure(arguments: argparse.Namespace, network: str, seed: int) -> dict[str, float]:
    """Top-1 in % by phase."""
    first = fit(
        arguments,
        network,
        seed,
        28,
        "crops_28",
        arguments.samples,
        "--data.augmentation.min_area=0.08",
        "--data.augmentation.jitter_ratio=true",
        "--run.checkpoint_every_steps=100000",
    )
    checkpoint = max(first.checkpoints.glob("step-*.ckpt"))
    result: dict[str, Any] = first.read_result() or {}
    tops = {"28 px": float(result["top1"]), "at 56 px, untrained": tested_at(first, network, 56)}
    for size in (56, 28):
        again = fit(
            arguments,
            network,
            seed,
            size,
            f"crops_{size}_finetuned",
            arguments.finetune_samples,
            f"--model.weights={checkpoint}",
            "--model.label_smoothing=0.1",
            "--run.checkpoint_every_steps=100000",
            *NETWORKS[network][3],
        )
        result = again.read_result() or {}
        tops["finetuned at 56 px" if size == 56 else "finetuned at 28 px"] = float(result["top1"])
    return {phase: 100 * top1 for phase, top1 in tops.items()}


def render(arguments: argparse.Namespace, tables: dict[str, list[dict[str, float]]]) -> str:
    phases = list(next(iter(tables.values()))[0])
    lines = [f"| network | seeds | {' | '.join(phases)} |", f"|---|---:|{'---:|' * len(phases)}"]
    for network, rows in tables.items():
        cells = []
        for phase in phases:
            values = [row[phase] for row in rows]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.2f}{spread}")
        lines.append(f"| {network} | {len(rows)} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Top-1 in % on the 10,000 test images of Fashion-MNIST, mean ± standard deviation over seeds. First training: "
        f"{arguments.samples:,} images seen, crops of 8 to 100 % of the area; finetuning: {arguments.finetune_samples:,}, "
        f"whole images. {cpu_name()}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Fashion-MNIST as `vitlight data pack` leaves it")
    parser.add_argument("--out", type=Path, required=True, help="root of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--samples", type=int, default=120_000, help="images of the first training")
    parser.add_argument("--finetune-samples", type=int, default=30_000, help="images of finetuning")
    parser.add_argument("--markdown", type=Path, help="a page whose part between the marks is replaced")
    parser.add_argument("--mark", default="resolution", help="what these marks say")
    arguments = parser.parse_args()
    tables: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:
        for network in arguments.networks:
            tables.setdefault(network, []).append(measure(arguments, network, seed))
            print(network, seed, tables[network][-1], flush=True)
    page = render(arguments, tables)
    print(page)
    if arguments.markdown:
        write_measured(arguments.markdown, page, arguments.mark)


if __name__ == "__main__":
    main()

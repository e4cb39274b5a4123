"""Looks inside a ViT, a CoAtNet and a ResNet trained on Fashion-MNIST: figures and screenshots for docs/insight.md.

    python benchmarks/insight_pages.py --data DATA/fashion_mnist --out OUT --markdown docs/insight.md

Trains each of the three for `--epochs` epochs (runs in OUT that are done are not trained again), inspects them one by
one and side by side, and opens the pages in Chromium: screenshots and figures go to docs/insight/, the table between
the marks of the page. Nothing here is a timing.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pages import cpu_name, write_measured
from PIL import Image

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))
from tests.browser import start_browser  # noqa: E402

NETWORKS: dict[str, dict[str, Any]] = {
    "vit_nano2": {"pool": "cls", "posemb": "learned"},
    "coatnet_nano2": {},
    "resnet_nano2": {},
}
VIEWS = {"desktop": (1280, "light"), "dark": (1280, "dark"), "phone": (390, "light")}
SHOWN = 1720  # pixels of the page with all three: its first part


def vitlight(*args: object, cwd: Path) -> str:
    command = [sys.executable, "-m", "vitlight", *map(str, args)]
    return subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True).stdout


def train(arch: str, options: dict[str, Any], data: Path, out: Path, epochs: int) -> Path:
    """The run directory of a finished run, seen from `out`: pages name it."""
    configs = [f"--config={HERE / 'experiments' / name}" for name in ("base.yaml", "fashion_mnist.yaml")]
    settings = {
        "run.root": Path("runs", arch),
        "run.wandb": "false",
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "model.arch": arch,
        "model.model_options": json.dumps(options),
        "model.duration.epochs": epochs,
        "data.train": data.resolve() / "train",
        "data.test": data.resolve() / "test",
        "data.val_fraction": 0.02,
    }
    vitlight("fit", *configs, *(f"--{name}={value}" for name, value in settings.items()), cwd=out)
    (run,) = (out / "runs" / arch / "fashion_mnist").iterdir()
    return run.relative_to(out)


def keep(picture: Path, target: Path, height: int | None = None) -> None:
    """The page down to `height` pixels in 256 colours, since it is kept in the repository: the 128 that are used most as
    they are, so that grounds and lines keep theirs, and for the rest as many as a median cut finds."""
    with Image.open(picture) as image:
        whole = image.convert("RGB")
    shown = whole.crop((0, 0, whole.width, min(height or whole.height, whole.height)))
    colours, counts = np.unique(np.asarray(shown).reshape(-1, 3), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    palette = colours[order[:128]].flatten().tolist()
    if len(order) > 128:
        rest = Image.fromarray(np.repeat(colours[order[128:]], np.minimum(counts[order[128:]], 64), axis=0)[None])
        palette += (rest.quantize(128).getpalette() or [])[: 3 * 128]
    chosen = Image.new("P", (1, 1))
    chosen.putpalette(palette)
    shown.quantize(palette=chosen, dither=Image.Dither.NONE).save(target, optimize=True)


def screenshots(pages: dict[str, Path], out: Path, docs: Path) -> None:
    """Of each page on a desktop, and of the one with all of them also in the dark and on a phone."""
    sessions = start_browser(out / "profile")
    browser = next(sessions)
    for name, page in pages.items():
        for view, (width, scheme) in VIEWS.items():
            if view != "desktop" and name != "together":
                continue
            browser.open(page, width, scheme)
            browser.keep_screenshot(f"{name}_{view}.png", out)
            keep(out / f"{name}_{view}.png", docs / f"{name}_{view}.png", SHOWN if name == "together" else None)
            browser.assert_quiet(page)
    next(sessions, None)


def table(networks: list[dict[str, Any]], results: dict[str, dict[str, Any]]) -> str:
    columns = (
        "top-1, %",
        "mean attention distance by layer, px",
        "entropy by layer, nats",
        "50 / 90 % radius by stage, px",
    )
    lines = [f"| network | {' | '.join(columns)} |", "| --- | ---: | --- | --- | --- |"]
    for network in networks:
        layers = sorted({row["layer"] for row in network["attention"]})
        means = {
            key: ", ".join(
                f"{np.mean([row[key] for row in network['attention'] if row['layer'] == layer]):.3g}"
                for layer in layers
            )
            for key in ("distance_px", "entropy_nats")
        }
        radii = ", ".join(
            f"{row['radius_50_px']:.3g} / {row['radius_90_px']:.3g}" for row in network["receptive_field"]
        )
        top1 = 100 * results[network["arch"]]["top1"]
        cells = (network["arch"], f"{top1:.1f}", means["distance_px"] or "–", means["entropy_nats"] or "–", radii)
        lines.append(f"| {' | '.join(cells)} |")
    result = results[networks[0]["arch"]]
    num_images, versions = networks[0]["num_images"], result["versions"]
    about = (
        f"Fashion-MNIST, {result['samples_seen']:,} samples seen, one seed each, {num_images} held-out images; "
        f"{cpu_name()}, torch {versions['torch']}, commit {result['commit']}."
    )
    return "\n".join([*lines, "", about])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder with train/ and test/ of packed Fashion-MNIST"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    docs = HERE / "docs" / "insight"
    docs.mkdir(exist_ok=True)
    runs = {arch: train(arch, options, args.data, args.out, args.epochs) for arch, options in NETWORKS.items()}
    pages = {}
    for arch, run in runs.items():
        told = json.loads(vitlight("inspect", run, "--device=cpu", f"--output={arch}", "--json", cwd=args.out))
        pages[arch] = args.out / told["insight"]
    first, *others = runs.values()
    together = ("--beside", *others, "--device=cpu", "--output=together", "--json")
    told = json.loads(vitlight("inspect", first, *together, cwd=args.out))
    pages["together"] = args.out / told["insight"]
    keep(args.out / "together" / "receptive_fields.png", docs / "receptive_fields.png")
    screenshots(pages, args.out, docs)
    results = {arch: json.loads((args.out / run / "result.json").read_text()) for arch, run in runs.items()}
    text = table(told["networks"], results)
    if args.markdown is not None:
        write_measured(args.markdown, text)
    print(text)


if __name__ == "__main__":
    main()

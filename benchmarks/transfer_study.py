"""Does a larger model need more pre-training data? Sizes x sets of generated images, transferred to Fashion-MNIST.

    python benchmarks/transfer_study.py --data data/fashion_mnist --out OUT --markdown docs/results/transfer.md

1. Pre-training: each size on 1,000, 8,000 and 64,000 generated images of 20 classes (28 px, grey), three seeds, all with
   as many images seen, so that what differs is how many different ones.
2. Rates: for each size, finetuning of seed 0 after the set in the middle, and training from scratch, at three learning rates
   each. The best on a held-out tenth of Fashion-MNIST's training images is taken for all seeds and sets.
3. Transfer of each network to all 60,000 images, and to 10 a class, with a fresh classifier; from scratch, too.
4. Frozen features: ridge regression on 10 images a class, penalty chosen on held-out images, five subsets.

Every part is a sweep below OUT that goes on where it stopped. The test images are read once a run and choose nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pages import cpu_name, write_measured

from vitlight import load_runs

HERE = Path(__file__).resolve().parent.parent
SCRATCH = 0  # as a number of pre-training images
FULL, FEW = "60,000 images", "10 images a class"
RATES = {True: (3e-4, 1e-3, 3e-3), False: (1e-3, 3e-3, 1e-2)}  # of finetuning; from scratch


class Study:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out, self.data = arguments, arguments.out, arguments.data
        self.archs, self.sizes, self.seeds = arguments.archs, arguments.sizes, arguments.seeds
        self.images = self.out / "synthetic"

    def pretrain(self) -> pd.DataFrame:
        if not (self.images / "test" / "index").exists():
            words = (
                "--num-train",
                max(self.sizes),
                "--num-test",
                "4000",
                "--num-classes",
                "20",
                "--image-size",
                "28",
                "--difficulty",
                "0.1",
            )
            vitlight("data", "synth", self.images, *words)
        cells = {
            "model.arch": {"values": self.archs},
            "data.num_train_samples": {"values": self.sizes},
            "seed_everything": {"values": self.seeds},
            "model.duration.samples": {"value": self.arguments.samples},
        }
        data = {"train": f"{self.images}/train", "test": f"{self.images}/test", "num_classes": 20}
        return self._sweep("pretrain", cells, data | {"mean": 0.5, "std": 0.25})

    def choose_rates(self, pretrained: pd.DataFrame) -> dict[tuple[str, bool], float]:
        """By architecture, and whether it is pre-trained."""
        chosen, middle = {}, self.sizes[len(self.sizes) // 2]
        for is_pretrained in (True, False):
            networks = [{"arch": arch} for arch in self.archs]
            if is_pretrained:
                networks = [network_of(pretrained, arch, middle, self.seeds[0]) for arch in self.archs]
            cells = {
                "model": {"values": networks},
                "model.optimizer.lr": {"values": list(RATES[is_pretrained])},
                "model.duration.samples": {"value": self.arguments.transfer_samples},
            }
            data = self._fashion() | {"val_fraction": 0.1, "test": None}
            runs = self._sweep(f"rates_{'pretrained' if is_pretrained else 'scratch'}", cells, data)
            for arch, rows in runs.groupby("arch"):
                chosen[str(arch), is_pretrained] = float(rows.loc[rows["val_top1"].idxmax(), "lr"])
        return chosen

    def transfer(self, pretrained: pd.DataFrame, rates: dict[tuple[str, bool], float], few: bool) -> pd.DataFrame:
        networks = []
        for arch in self.archs:
            for seed in self.seeds:
                networks += [
                    {
                        "seed_everything": seed,
                        "model": network_of(pretrained, arch, size, seed) | {"optimizer": {"lr": rates[arch, True]}},
                    }
                    for size in self.sizes
                ]
                networks.append(
                    {"seed_everything": seed, "model": {"arch": arch, "optimizer": {"lr": rates[arch, False]}}}
                )
        folder = self.out / "networks"
        folder.mkdir(exist_ok=True)
        for number, network in enumerate(networks):
            (folder / f"{number:02}.yaml").write_text(yaml.safe_dump(network))
        cells = {
            "config": {"values": [str(folder / f"{number:02}.yaml") for number in range(len(networks))]},
            "model.duration.samples": {"value": self.arguments.few_samples if few else self.arguments.transfer_samples},
        }
        data = self._fashion() | ({"num_train_samples_per_class": 10} if few else {})
        return self._sweep("transfer_few" if few else "transfer_full", cells, data)

    def probe(self, pretrained: pd.DataFrame) -> dict[str, float]:
        """By run directory: top-1 of ridge regression on frozen features of 10 images a class, mean of five subsets."""
        found = {}
        for run_dir in pretrained["run_dir"]:
            path = Path(run_dir) / "fashion.json"
            if not path.exists():
                words = ("--shots", "10", "--seeds", "5", "--name", "fashion", "--output", path)
                images = (f"--data.train={self.data}/train", f"--data.test={self.data}/test", "--data.val_fraction=0.1")
                vitlight("probe", run_dir, *words, *images, "--data.num_classes=10")
            (probe,) = json.loads(path.read_text())["probes"].values()
            (score,) = (each for each in probe["scores"] if each["column"] == "few_shot/10_shot_tuned")
            found[str(run_dir)] = 100 * float(score["top1"])
        return found

    def _fashion(self) -> dict[str, Any]:
        return {"train": f"{self.data}/train", "test": f"{self.data}/test"}

    def _sweep(self, name: str, parameters: dict[str, Any], data: dict[str, Any]) -> pd.DataFrame:
        settings = {"model": {"duration": {"epochs": None, "min_samples": 0}}, "data": data}
        (self.out / f"{name}_settings.yaml").write_text(yaml.safe_dump(settings))
        configs = [HERE / "experiments" / "base.yaml", HERE / "experiments" / "fashion_mnist.yaml"]
        words = [f"--config={path}" for path in (*configs, self.out / f"{name}_settings.yaml")]
        words += ["--run.wandb=false", "--run.num_evaluations=1", "--trainer.accelerator=cpu"]
        command = ["${env}", "vitlight", "fit", *words, "${args}"]
        content = {"name": name, "program": "vitlight", "method": "grid", "command": command, "parameters": parameters}
        file = self.out / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        vitlight("sweep", "run", file, "--root", self.out / "runs", "--jobs", self.arguments.jobs)
        return load_runs(self.out / "runs" / name)


def vitlight(*words: Any) -> None:
    print(">", *words, flush=True)
    subprocess.run([sys.executable, "-m", "vitlight", *map(str, words)], check=True)


def network_of(pretrained: pd.DataFrame, arch: str, size: int, seed: int) -> dict[str, Any]:
    """Settings of a model that starts from a pre-trained network."""
    of_arch = pretrained[(pretrained["arch"] == arch) & (pretrained["num_train_samples"] == size)]
    run_dir = of_arch.set_index("seed").loc[seed, "run_dir"]
    return {"arch": arch, "weights": str(Path(str(run_dir)).resolve()), "weights_head": "fresh"}


def pretrained_on(run_dir: Any, sizes: dict[str, int]) -> int:
    """The pre-training images of a run's weights; SCRATCH where it has none."""
    weights = yaml.safe_load((Path(str(run_dir)) / "experiment.yaml").read_text())["model"]["weights"]
    return SCRATCH if weights is None else sizes[str(Path(weights).resolve())]


def rows(study: Study) -> Iterator[dict[str, Any]]:
    """One for each size, pre-training set and seed, with what was measured, top-1 in percent."""
    pretrained = study.pretrain()
    rates = study.choose_rates(pretrained)
    full, few = (study.transfer(pretrained, rates, few) for few in (False, True))
    probes = study.probe(pretrained)
    sizes = {str(Path(run_dir).resolve()): n for run_dir, n in pretrained[["run_dir", "num_train_samples"]].to_numpy()}
    for table in (full, few):
        table["pretrained_on"] = [pretrained_on(run_dir, sizes) for run_dir in table["run_dir"]]
    for _, run in full.iterrows():
        key = (run["arch"], run["pretrained_on"], run["seed"])
        same = few[(few["arch"] == key[0]) & (few["pretrained_on"] == key[1]) & (few["seed"] == key[2])]
        row = dict(zip(("arch", "pretrained_on", "seed"), key, strict=True)) | {"lr": run["lr"]}
        row |= {FULL: 100 * float(run["top1"]), FEW: 100 * float(same["top1"].item())}
        if key[1] != SCRATCH:
            before = pretrained.set_index(["arch", "num_train_samples", "seed"]).loc[key]
            row |= {"generated": 100 * float(before["top1"]), "frozen": probes[str(before["run_dir"])]}
        yield row


def render(table: pd.DataFrame, arguments: argparse.Namespace) -> str:
    columns = {"generated": "generated images", FULL: FULL, FEW: FEW, "frozen": f"{FEW}, frozen"}
    lines = [
        f"| network | pre-training images | rate | {' | '.join(columns.values())} |",
        "|---|---:|---:|" + 4 * "---:|",
    ]
    for (arch, size), group in table.groupby(["arch", "pretrained_on"]):
        cells = [spread(group[column].dropna().tolist()) for column in columns]
        name = "none" if size == SCRATCH else f"{size:,}"
        lines.append(f"| {arch} | {name} | {group['lr'].iloc[0]:g} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Top-1 in % on test images, mean ± standard deviation over {table['seed'].nunique()} seeds; of generated images on "
        f"4,000 of their own. Images seen: {arguments.samples:,} in pre-training, {arguments.transfer_samples:,} on 60,000 "
        f"images, {arguments.few_samples:,} on 10 a class. {cpu_name()}.",
    ]
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Fashion-MNIST as `vitlight data pack` leaves it")
    parser.add_argument("--out", type=Path, required=True, help="for generated images, sweeps and runs")
    parser.add_argument("--archs", nargs="+", default=["vit_nano1", "vit_nano2", "vit_nano3"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 8_000, 64_000], help="pre-training images")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=128_000, help="images seen in pre-training")
    parser.add_argument("--transfer-samples", type=int, default=25_600, help="images seen of 60,000")
    parser.add_argument("--few-samples", type=int, default=6_400, help="images seen of 10 a class")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="a page whose part between the marks is replaced")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows(Study(arguments)))
    page = render(table, arguments)
    print(page)
    if arguments.json:
        arguments.json.write_text(json.dumps(table.to_dict("records"), indent=1))
    if arguments.markdown:
        write_measured(arguments.markdown, page)


if __name__ == "__main__":
    main()

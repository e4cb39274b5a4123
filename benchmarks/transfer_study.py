"""Does a larger model need more pre-training data? Sizes x sets of generated images, transferred to Fashion-MNIST.

    python benchmarks/transfer_study.py --data data/fashion_mnist --out OUT --markdown docs/results/transfer.md

1. Rates of pre-training: each size on nine tenths of the largest set of generated images (20 classes, 28 px, grey), at
   several learning rates. The best on the other tenth is taken for all sets and seeds.
2. Pre-training: each size on 1,000, 8,000 and 64,000 of them, three seeds, all with as many images seen, so that what
   differs is how many different ones.
3. Rates of transfer: for each size, finetuning of seed 0 after the set in the middle, and training from scratch, at several
   rates each. The best on a held-out tenth of Fashion-MNIST's training images is taken for all seeds and sets.
4. Transfer of each network to all 60,000 images, and to 10 a class, with a fresh classifier; from scratch, too.
5. Frozen features: ridge regression on 10 images a class, penalty chosen on held-out images, five subsets.

Every part is a sweep below OUT that goes on where it stopped. The test images are read once a run and choose nothing.
"""

import argparse
import itertools
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
# By name: a fourth of the forward MACs of the next, about.
NETWORKS: dict[str, dict[str, Any]] = {
    "vit_nano1, width 16": {"arch": "vit_nano1", "model_options": {"width": 16, "num_heads": 1, "mlp_dim": 32}},
    "vit_nano1": {"arch": "vit_nano1"},
    "vit_nano2": {"arch": "vit_nano2"},
}
# Learning rates tried: of pre-training, of finetuning, and of training from scratch.
PRETRAIN_RATES, FINETUNE_RATES, SCRATCH_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2), (3e-4, 1e-3, 3e-3), (2e-3, 4e-3, 8e-3)


class Study:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out, self.data = arguments, arguments.out, arguments.data
        self.sizes, self.seeds = arguments.sizes, arguments.seeds
        self.networks = {name: NETWORKS[name] for name in arguments.networks}
        self.images = self.out / "synthetic"

    def pretraining_rates(self) -> dict[str, float]:
        """By network."""
        if not (self.images / "test" / "index").exists():
            words = ("--num-train", max(self.sizes), "--num-test", "4000", "--num-classes", "20", "--image-size", "28")
            vitlight("data", "synth", self.images, *words, "--difficulty", "0.1")
        cells = {
            "model": {"values": list(self.networks.values())},
            "model.optimizer.lr": {"values": list(PRETRAIN_RATES)},
            "model.duration.samples": {"value": self.arguments.samples},
        }
        return self._best(
            self._sweep("rates_of_pretraining", cells, self._generated() | {"val_fraction": 0.1, "test": None})
        )

    def pretrain(self, rates: dict[str, float]) -> pd.DataFrame:
        networks = [network | {"optimizer": {"lr": rates[name]}} for name, network in self.networks.items()]
        cells = {
            "model": {"values": networks},
            "data.num_train_samples": {"values": self.sizes},
            "seed_everything": {"values": self.seeds},
            "model.duration.samples": {"value": self.arguments.samples},
        }
        return self._sweep("pretrain", cells, self._generated())

    def transfer_rates(self, pretrained: pd.DataFrame) -> dict[tuple[str, bool], float]:
        """By network, and whether it is pre-trained."""
        chosen: dict[tuple[str, bool], float] = {}
        middle = self.sizes[len(self.sizes) // 2]
        for is_pretrained in (True, False):
            networks = list(self.networks.values())
            if is_pretrained:
                networks = [self._from(pretrained, name, middle, self.seeds[0]) for name in self.networks]
            cells = {
                "model": {"values": networks},
                "model.optimizer.lr": {"values": list(FINETUNE_RATES if is_pretrained else SCRATCH_RATES)},
                "model.duration.samples": {"value": self.arguments.transfer_samples},
            }
            data = self._fashion() | {"val_fraction": 0.1, "test": None}
            best = self._best(self._sweep(f"rates_{'of_finetuning' if is_pretrained else 'from_scratch'}", cells, data))
            chosen |= {(name, is_pretrained): rate for name, rate in best.items()}
        return chosen

    def transfer(self, pretrained: pd.DataFrame, rates: dict[tuple[str, bool], float], few: bool) -> pd.DataFrame:
        settings = []
        for name, network in self.networks.items():
            for seed in self.seeds:
                for size in self.sizes:
                    model = self._from(pretrained, name, size, seed) | {"optimizer": {"lr": rates[name, True]}}
                    settings.append({"seed_everything": seed, "model": model})
                model = network | {"optimizer": {"lr": rates[name, False]}}
                settings.append({"seed_everything": seed, "model": model})
        folder = self.out / "starts"
        folder.mkdir(exist_ok=True)
        for number, one in enumerate(settings):
            (folder / f"{number:02}.yaml").write_text(yaml.safe_dump(one))
        cells = {
            "config": {"values": [str(folder / f"{number:02}.yaml") for number in range(len(settings))]},
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

    def _from(self, pretrained: pd.DataFrame, name: str, size: int, seed: int) -> dict[str, Any]:
        """Settings of a model that starts from a pre-trained network."""
        run_dir = pretrained.set_index(["network", "num_train_samples", "seed"]).loc[(name, size, seed), "run_dir"]
        return self.networks[name] | {"weights": str(Path(str(run_dir)).resolve()), "weights_head": "fresh"}

    @staticmethod
    def _best(runs: pd.DataFrame) -> dict[str, float]:
        """The rate with the highest val_top1, by network."""
        best = runs.sort_values("val_top1", kind="stable").groupby("network").last()
        return {str(name): float(rate) for name, rate in best["lr"].items()}

    def _generated(self) -> dict[str, Any]:
        return {
            **{"train": f"{self.images}/train", "test": f"{self.images}/test", "num_classes": 20},
            **{"mean": 0.5, "std": 0.25},
        }

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
        runs = load_runs(self.out / "runs" / name)
        runs["network"] = [network_of(run_dir) for run_dir in runs["run_dir"]]
        return runs


def vitlight(*words: Any) -> None:
    print(">", *words, flush=True)
    subprocess.run([sys.executable, "-m", "vitlight", *map(str, words)], check=True)


def network_of(run_dir: Any) -> str:
    model = yaml.safe_load((Path(str(run_dir)) / "experiment.yaml").read_text())["model"]
    own = {"arch": model["arch"]} | ({"model_options": options} if (options := model.get("model_options")) else {})
    (name,) = (name for name, network in NETWORKS.items() if network == own)
    return name


def pretrained_on(run_dir: Any, sizes: dict[str, int]) -> int:
    """The pre-training images of a run's weights; SCRATCH where it has none."""
    weights = yaml.safe_load((Path(str(run_dir)) / "experiment.yaml").read_text())["model"]["weights"]
    return SCRATCH if weights is None else sizes[str(Path(weights).resolve())]


def rows(study: Study) -> Iterator[dict[str, Any]]:
    """One for each network, pre-training set and seed, with what was measured, top-1 in percent."""
    pretraining = study.pretraining_rates()
    pretrained = study.pretrain(pretraining)
    rates = study.transfer_rates(pretrained)
    full, few = (study.transfer(pretrained, rates, few) for few in (False, True))
    probes = study.probe(pretrained)
    sizes = {str(Path(run_dir).resolve()): n for run_dir, n in pretrained[["run_dir", "num_train_samples"]].to_numpy()}
    key = ["network", "pretrained_on", "seed"]
    for table in (full, few):
        table["pretrained_on"] = [pretrained_on(run_dir, sizes) for run_dir in table["run_dir"]]
    few_top1 = few.set_index(key)["top1"]
    before = pretrained.set_index(["network", "num_train_samples", "seed"])
    for _, run in full.iterrows():
        where = tuple(run[key])
        row = dict(zip(key, where, strict=True)) | {"lr": run["lr"], "params": int(run["params"])}
        row |= {FULL: 100 * float(run["top1"]), FEW: 100 * float(few_top1.loc[where])}
        if run["pretrained_on"] != SCRATCH:
            row |= {
                "generated": 100 * float(before.loc[where, "top1"]),
                "frozen": probes[str(before.loc[where, "run_dir"])],
            }
            row |= {"pretraining_lr": pretraining[run["network"]]}
        yield row


def render(table: pd.DataFrame, arguments: argparse.Namespace) -> str:
    columns = {"generated": "generated images", FULL: FULL, FEW: FEW, "frozen": f"{FEW}, frozen"}
    lines = [
        f"| network | parameters | pre-training images | {' | '.join(columns.values())} |",
        "|---|---:|---:|" + 4 * "---:|",
    ]
    for name in arguments.networks:
        of_network = table[table["network"] == name]
        for size, group in of_network.groupby("pretrained_on"):
            cells = [spread(group[column].dropna().tolist()) for column in columns]
            images = "none" if size == SCRATCH else f"{size:,}"
            lines.append(f"| {name} | {of_network['params'].iloc[0]:,} | {images} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Top-1 in % on test images, mean ± standard deviation over {table['seed'].nunique()} seeds; of generated images on "
        f"4,000 of their own. Images seen: {arguments.samples:,} in pre-training, {arguments.transfer_samples:,} on 60,000 "
        f"images, {arguments.few_samples:,} on 10 a class. {cpu_name()}.",
        "",
        *gain_lines(table, arguments),
        "",
        "Rates, of pre-training, finetuning, from scratch: " + "; ".join(rates_of(table, arguments.networks)) + ".",
    ]
    return "\n".join(lines)


def gain_lines(table: pd.DataFrame, arguments: argparse.Namespace) -> Iterator[str]:
    """What more pre-training images give each network, seed by seed: the same seed draws subset, weights and order."""
    least, *_, most = sorted(arguments.sizes)
    yield f"From {least:,} to {most:,} pre-training images, in points, and how much more the next larger network gains:"
    yield ""
    columns = ("generated", FULL, FEW, "frozen")
    yield f"| network | {' | '.join(columns)} |"
    yield "|---|" + 4 * "---:|"
    by_key = table.set_index(["network", "pretrained_on", "seed"])
    gains = {
        name: {
            column: [gain(by_key[column], name, least, most, seed) for seed in arguments.seeds] for column in columns
        }
        for name in arguments.networks
    }
    for name in arguments.networks:
        yield f"| {name} | {' | '.join(spread(gains[name][column], '+.2f') for column in columns)} |"
    for smaller, larger in itertools.pairwise(arguments.networks):
        cells = []
        for column in columns:
            pairs = zip(gains[larger][column], gains[smaller][column], strict=True)
            cells.append(spread([more - less for more, less in pairs], "+.2f"))
        yield f"| {larger} beyond {smaller} | {' | '.join(cells)} |"


def gain(values: "pd.Series[float]", name: str, least: int, most: int, seed: int) -> float:
    return float(values.loc[(name, most, seed)] - values.loc[(name, least, seed)])


def rates_of(table: pd.DataFrame, networks: Sequence[str]) -> Iterator[str]:
    for name in networks:
        of_network = table[table["network"] == name]
        finetuned, scratch = (
            of_network[of_network["pretrained_on"].eq(SCRATCH) == is_scratch] for is_scratch in (False, True)
        )
        rates = (finetuned["pretraining_lr"].iloc[0], finetuned["lr"].iloc[0], scratch["lr"].iloc[0])
        yield f"{name} {', '.join(f'{rate:g}' for rate in rates)}"


def spread(values: Sequence[float], form: str = ".2f") -> str:
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Fashion-MNIST as `vitlight data pack` leaves it")
    parser.add_argument("--out", type=Path, required=True, help="for generated images, sweeps and runs")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="small to large")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 8_000, 64_000], help="pre-training images")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=192_000, help="images seen in pre-training")
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

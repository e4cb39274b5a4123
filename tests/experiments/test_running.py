"""Every experiment runs two optimizer steps: on tiny shards, with a small network of its family, and all else as it is."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.stacks import parse, recipes
from tests.reference_libraries import reference
from vitlight.cli import main
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run

# What a recipe's network is replaced by, and the options that make it small.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_nano1", {}),
    "coatnet": ("coatnet_nano1", {}),
    "resnet": ("resnet_nano1", {}),
    "bit": ("bit_r50x1", {"depths": [1, 1]}),
    "timm:convnext": ("timm:test_convnext", {}),
    "timm:efficientnetv2": ("timm:test_efficientnet", {}),
}
# The recipe whose weights each starts from, one of those it is for.
BEFORE = {
    "coatnet_in1k_finetune": "coatnet_in1k",
    "coatnet_in21k_finetune": "coatnet_in21k",
    "coatnet_jft_finetune": "coatnet_jft",
    "deit3_finetune": "deit3",
    "vit_finetune": "augreg_in21k",
    "vit_finetune + vit_finetune/mlp_head": "vit_in21k",
    "vit_finetune + vit_finetune/map_head": "scaling_vit",
    "bit_hyperrule": "bit_m",
}


class Runner:
    """Runs experiments once each, in one folder."""

    def __init__(self, shards: Path, root: Path) -> None:
        self.shards, self.root = shards, root
        self.done: dict[str, RunDirectory] = {}

    def args(self, name: str) -> list[str]:
        cli = parse(name)
        model, data = cli.build_model_settings(), cli.build_data()
        arch, small = SMALL[re.match("(timm:)?[a-z]+2?", model["arch"])[0]]
        if arch.startswith("timm:"):
            reference("timm")
        batch = 12 if data.num_repeats == 3 else 16
        options = {**(model["model_options"] or {}), **small}
        return [
            *cli._args,
            f"--model.arch={arch}",
            f"--model.model_options={options}",
            f"--model.duration={{epochs: null, samples: {2 * batch}, min_samples: 0}}",
            f"--data.global_batch_size={batch}",
            f"--data.image_size={32 if name in BEFORE or arch.startswith('timm:') else 28}",
            f"--data.train={self.shards / 'train'}",
            f"--data.test={self.shards / 'test'}",
            *("--data.num_classes=4", "--data.channels=3", "--data.mean=0.5", "--data.std=0.5", "--data.num_workers=0"),
            *("--trainer.accelerator=cpu", "--trainer.devices=1", "--run.wandb=false", "--run.log_every_steps=1"),
            f"--run.root={self.root}",
            *([f"--model.weights={self.checkpoint(BEFORE[name])}"] if name in BEFORE else []),
        ]

    def run(self, name: str) -> RunDirectory:
        if name not in self.done:
            args = self.args(name)
            assert main(args) == 0
            self.done[name] = RunDirectory(resolve_run(args).run_dir)
        return self.done[name]

    def checkpoint(self, name: str) -> Path:
        return max(self.run(name).checkpoints.glob("*.ckpt"))


@pytest.fixture(scope="module")
def runner(tiny_shards, tmp_path_factory) -> Runner:
    return Runner(tiny_shards, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", sorted({*recipes(), *BEFORE, "fashion_mnist + wsd"}))
def test_two_steps(runner, name):
    run = runner.run(name)
    model = parse(name).build_model_settings()
    steps = [row for row in run.rows() if row["event"] == "train"]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(math.isfinite(row["train/loss"]) for row in steps)
    horizon = steps[-1]["data/samples_seen"]
    rates = [model["optimizer"].lr * model["schedule"].factor(part * horizon, horizon) for part in (0.25, 0.75)]
    assert [row["train/learning_rate"] for row in steps] == pytest.approx(rates)
    result = run.read_result()
    assert (result["status"], result["num_eval_samples"]) == ("done", 61)


def test_a_convolutional_network_is_evaluated_at_another_size(runner, capsys):
    """ResNet-50's A3 and torchvision's second recipe train small and are evaluated at 224 px."""
    checkpoint = runner.checkpoint("resnet50_a3")
    capsys.readouterr()
    assert main(["test", f"--ckpt_path={checkpoint}", "--data.image_size=40"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_images"], result["step"]) == (61, 2)

"""Every file in sweeps/: its cells, what they cost, and that `wandb agent` could start each."""

import re
from functools import cache
from hashlib import sha256
from itertools import takewhile

import pytest
import yaml

import vitlight.training.resolve as resolve_module
from tests.conftest import ROOT
from vitlight.cli import main
from vitlight.sweep import load_sweep, plan_sweep
from vitlight.sweep.rates import network_of
from vitlight.training.resolve import ImageSet, Resolver

SWEEPS = sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))
NUM_CELLS = {
    "augreg": 42,
    "cnn_vs_vit_vs_coatnet": 117,
    "coatnet_layouts": 20,
    "cooldown_branches": 15,
    "fashion_mnist_size_x_data": 36,
    "lr_search": 24,
    "lr_x_size": 28,
    "model_size_x_data_size": 60,
    "model_size_x_data_size_jft": 28,
    "quickstart": 18,
    "relative_attention": 8,
    "transfer_imagenet": 4,
    "transfer_tasks": 32,
    "transfer_vtab": 19,
}
RUN_HERE = ("quickstart", "cooldown_branches", "fashion_mnist_size_x_data")  # with results instead of expectations
# Training images by classes and channels: ImageNet-1k, JFT-300M as the ViT paper counts, Fashion-MNIST, the generated set.
IMAGES = {(1000, 3): 1_281_167, (18_291, 3): 303_000_000, (10, 1): 60_000, (10, 3): 10_000}
# By task: CIFAR, Pets, Flowers; of VTAB's the thousand that are trained on.
TASKS = {"cifar10": 50_000, "cifar100": 50_000, "pets": 3_680, "flowers": 2_040, "vtab": 1_000}


class PublishedSets(Resolver):
    """Settings resolved on sets of the published sizes, of which nothing has to be there."""

    def open_set(self, data):
        task = data.train_source.split("/")[1]
        total = TASKS[task] if task in TASKS else IMAGES[data.num_classes, data.channels]
        rule = data.subset_rule
        total -= round(rule.val_fraction * total)
        wanted = rule.num_samples or round((rule.fraction or 1.0) * total)
        assert wanted <= total
        return ImageSet(wanted, f"{data.train_source} {rule}")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    """Where the pre-trained weights that files name are taken to be there."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(resolve_module, "weights_digest", lambda source, *_: sha256(source.encode()).hexdigest()[:32])


@cache
def planned(name):
    return plan_sweep(load_sweep(f"sweeps/{name}.yaml"), PublishedSets())


def note(name):
    """The comment that a file opens with."""
    lines = takewhile(lambda line: line.startswith("#"), (ROOT / "sweeps" / f"{name}.yaml").read_text().splitlines())
    return "\n".join(lines)


def test_every_file_is_known():
    assert sorted(NUM_CELLS) == SWEEPS


@pytest.mark.parametrize("name", SWEEPS)
def test_all_cells_are_runs_of_their_own_and_start_as_wandb_would_start_them(name, wandb_agent_command, monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = planned(name)
    assert len(cells) == NUM_CELLS[name] == len({item.run.run_id for item in cells})
    sweep = load_sweep(f"sweeps/{name}.yaml")
    resolve = PublishedSets()
    for item in (cells[0], cells[-1]):
        words = wandb_agent_command(sweep.command, sweep.program, item.cell.parameters)
        assert words[:3] == ["/usr/bin/env", "vitlight", "fit"]
        assert tuple(words[2:]) == item.cell.args
        assert resolve((*words[2:], f"--run.name={sweep.name}")).run_id == item.run.run_id


@pytest.mark.parametrize("name", [name for name in SWEEPS if "# Cost: " in note(name)])
def test_the_cost_in_the_note_is_the_counted_one(name):
    cells = planned(name)
    flops = [item.own_train_flops for item in cells]
    params = [item.run.params / 1e6 for item in cells]
    cost = (
        f"# Cost: {len(cells)} cells, {sum(flops):.2e} training FLOPs in all, at most {max(flops):.1e} a cell (FLOP = half "
        f"a MAC); {min(params):.3g} to {max(params):.3g} million parameters."
    ).replace("e+", "e")
    assert cost in note(name).splitlines()


@pytest.mark.parametrize("name", [name for name in SWEEPS if name not in RUN_HERE])
def test_a_study_opens_with_its_lab_note(name):
    text = note(name)
    for part in (
        "Asked: ",
        "Expected",
        "Cost: ",
        "What would change one's mind: ",
        f"  vitlight sweep run sweeps/{name}.yaml",
    ):
        assert f"# {part}" in text
    assert re.search(r"arXiv \d{4}\.\d{5}", text)
    assert "ot run here" in text


@pytest.mark.parametrize("name", SWEEPS)
def test_every_file_plans_from_the_command_line_on_shards_that_are_there(name, tiny_shards, tmp_path, capsys):
    """The corners of the grid, with the sets' places and sizes exchanged and all else as it is."""
    content = yaml.safe_load((ROOT / "sweeps" / f"{name}.yaml").read_text())
    for parameter, spec in content["parameters"].items():
        if "min" in spec:
            continue
        values = [spec["value"]] if "value" in spec else spec["values"]
        if parameter == "data.num_train_samples":
            values = [20 * (index + 1) for index in range(len(values))]
        content["parameters"][parameter] = {"values": [values[0], values[-1]] if len(values) > 1 else values}
    content["command"] = [
        *content["command"],
        f"--data.train={tiny_shards / 'train'}",
        f"--data.test={tiny_shards / 'test'}",
        "--data.global_batch_size=16",
        "--data.val_fraction=0.1",
    ]
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main(["sweep", "plan", str(path), "--root", str(tmp_path / "runs"), "--rate", "1TFLOP/s", "--json"]) == 0
    out = capsys.readouterr().out
    rows = yaml.safe_load(out)
    assert len(rows) == len(load_sweep(path).cells()) == len({row["run_id"] for row in rows})
    assert all(row["estimated_device_seconds"] == row["own_train_flops"] / 1e12 for row in rows)
    assert not (tmp_path / "runs").exists()


def test_settings_that_go_together_reach_the_runs():
    networks = {
        item.run.arch: (item.run.settings.model.optimizer.lr, bool(item.run.settings.model.model_options))
        for item in planned("model_size_x_data_size_jft")
    }
    assert networks == {
        **dict.fromkeys(("vit_ti16", "vit_s16", "vit_b32", "vit_b16"), (8e-4, True)),
        "vit_l16": (4e-4, True),
        "bit_r50x1": (1e-3, False),
        "bit_r152x2": (6e-4, False),
    }
    layouts = planned("coatnet_layouts")
    small, large = layouts[0].run.settings, layouts[-1].run.settings
    assert (small.data.num_classes, small.model.loss, small.data.test) == (1000, "softmax", "data/imagenet/val")
    assert (large.data.num_classes, large.model.loss, large.data.test) == (18_291, "sigmoid", None)
    assert {network_of(item).precision for item in layouts} == {"bf16-mixed"}

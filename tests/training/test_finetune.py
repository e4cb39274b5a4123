"""Fine-tuning: a head of zeros, another resolution, ViT's recipe, averages that start from the pre-trained weights, and
the choice of a rate on held-out images followed by a run on all of them."""

import json
import shutil

import pytest
import torch
import yaml

from vitlight.analysis.transfer_table import build_transfer_table
from vitlight.cli import main
from vitlight.models import build_model
from vitlight.models.vit import sincos2d
from vitlight.models.weights import load_weights
from vitlight.sweep import load_sweep
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run
from vitlight.training.trained import load_trained


def run(args):
    assert main(args) == 0
    return RunDirectory(resolve_run(args).run_dir)


def state(run, step):
    return torch.load(run.checkpoints / f"step-{step:09d}.ckpt", weights_only=True)


OPTIONS = {"vit_nano1": {"posemb": "learned"}, "coatnet_nano1": {}}


def network_args(arch, **more):
    return [f"--model.arch={arch}", f"--model.model_options={OPTIONS[arch] | more}"]


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def pretrained(request, tiny_shards, tmp_path_factory):
    """A network trained for 40 steps at 28 px, as ViT-nano and as CoAtNet-nano."""
    import tests.conftest as conftest

    args = conftest.fit_args.__wrapped__(tiny_shards, tmp_path_factory.mktemp("pretrained"))
    found = run(
        [
            *args,
            *network_args(request.param),
            "--model.duration.samples=640",
            "--run.checkpoint_every_steps=40",
            "--model.optimizer.lr=0.004",
        ]
    )
    return request.param, found


FINETUNE = (
    *("--model.optimizer.name=sgd", "--model.optimizer.momentum=0.9", "--model.optimizer.weight_decay=0"),
    *("--model.schedule.name=cosine", "--model.schedule.warmup_samples=16", "--model.schedule.warmup_fraction=null"),
    *("--model.duration.samples=64", "--run.checkpoint_every_steps=1", "--run.keep_checkpoints=9"),
    *("--run.log_every_steps=1", "--run.num_evaluations=1"),
)


def test_a_fresh_head_starts_at_zero_on_the_pretrained_body(fit_args, pretrained):
    arch, before = pretrained
    source = before.checkpoints / "step-000000040.ckpt"
    found = run([*fit_args, *FINETUNE, *network_args(arch), f"--model.weights={source}", "--model.weights_head=fresh"])
    # With every logit 0 the first loss is that of 4 equal classes, to the last bit but rounding.
    assert found.rows()[0]["train/loss"] == pytest.approx(torch.log(torch.tensor(4.0)).item(), abs=1e-6)
    head = "model.head.weight"
    assert state(before, 40)["state_dict"][head].abs().max() > 0


@pytest.mark.parametrize("image_size", [28, 56])
def test_a_checkpoint_is_tested_at_another_size_as_fine_tuning_there_begins(pretrained, image_size, capsys):
    """Position embeddings and relative biases are resized alike by `test`, by `model.weights` and by `load_trained`."""
    arch, before = pretrained
    checkpoint = before.checkpoints / "step-000000040.ckpt"
    capsys.readouterr()
    assert main(["test", f"--ckpt_path={checkpoint}", f"--data.image_size={image_size}"]) == 0
    said = capsys.readouterr()
    tested = json.loads(said.out)
    assert ("resized from" in said.err) == (image_size != 28)
    network = build_model(arch, 4, image_size, **OPTIONS[arch])
    load_weights(network, checkpoint)
    whole = load_trained(checkpoint, image_size=image_size)
    assert all(map(torch.equal, network.state_dict().values(), whole.network.state_dict().values()))
    data = whole.open_data(eval_batch_size=61)
    batch = next(iter(data.test_dataloader()))
    assert tested["num_images"] == 61
    assert tested["top1_count"] == int((whole.logits(batch["image"]).argmax(1) == batch["label"]).sum())
    if image_size == 28:
        assert tested["top1"] == before.read_result()["top1"]


@pytest.fixture(scope="module")
def fixed_positions(tiny_shards, tmp_path_factory):
    """The command line, and the run, of a network trained for 2 steps at 28 px with the ladder's own position embeddings."""
    import tests.conftest as conftest

    args = conftest.fit_args.__wrapped__(tiny_shards, tmp_path_factory.mktemp("fixed_positions"))
    return args, run([*args, "--model.duration.samples=32", "--model.optimizer.lr=0.004"])


def test_fixed_positions_keep_the_grid_they_were_trained_on(fixed_positions, tmp_path, capsys):
    """By `test`, `load_trained` and fine-tuning alike; what was fine-tuned goes on with it, also when its start is gone."""
    args, before = fixed_positions
    table, line = sincos2d(14, 32, over=7), "fixed positions between those of a 7x7 grid, for 14x14"
    whole = load_trained(before.path, image_size=56)
    assert torch.equal(whole.network.get_buffer("posemb"), table)
    assert line in whole.source
    capsys.readouterr()
    assert main(["test", f"--ckpt_path={before.path}", "--data.image_size=56"]) == 0
    said = capsys.readouterr()
    assert f"checkpoint: {line}" in said.err
    data = whole.open_data(eval_batch_size=61)
    batch = next(iter(data.test_dataloader()))
    correct = int((whole.logits(batch["image"]).argmax(1) == batch["label"]).sum())
    assert json.loads(said.out)["top1_count"] == correct

    source = tmp_path / "source"
    shutil.copytree(before.path, source)
    finetune = [
        *args,
        "--run.name=again",
        "--data.image_size=56",
        "--model.duration.samples=64",
        "--run.num_evaluations=1",
    ]
    finetune.append(f"--model.weights={source}")
    assert resolve_run([*finetune, "--model.model_options={posemb_grid: 14}"]).run_id != resolve_run(finetune).run_id
    after = run(finetune)
    assert line in capsys.readouterr().err
    assert yaml.safe_load(after.experiment_path.read_text())["model"]["model_options"] == {"posemb_grid": 7}
    assert torch.equal(load_trained(after.path).network.get_buffer("posemb"), table)
    shutil.rmtree(source)
    assert resolve_run(finetune).run_id == after.path.name


def test_a_run_directory_stands_for_its_checkpoint(fit_args, pretrained):
    arch, before = pretrained
    args = [*fit_args, *network_args(arch)]
    checkpoint = before.checkpoints / "step-000000040.ckpt"
    by_run, by_file = (resolve_run([*args, f"--model.weights={source}"]) for source in (before.path, checkpoint))
    assert by_run.run_id == by_file.run_id != resolve_run(args).run_id


def test_a_checkpoint_of_another_patch_is_one_line(fit_args, pretrained, capsys):
    arch, before = pretrained
    checkpoint = before.checkpoints / "step-000000040.ckpt"
    change = {"patch_size": 14} if arch == "vit_nano1" else {"widths": [16, 24, 32, 64]}
    assert main(["test", f"--ckpt_path={checkpoint}", *network_args(arch, **change)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("vitlight: error: --ckpt_path: ")
    assert "in the checkpoint and" in error


def test_a_polyak_average_starts_from_the_pretrained_weights(fit_args, pretrained):
    """average_t = d average_(t-1) + (1 - d) weights_t, and average_0 is what was loaded, with a head of zeros."""
    arch, before = pretrained
    source = before.checkpoints / "step-000000040.ckpt"
    options = (
        *network_args(arch),
        f"--model.weights={source}",
        "--model.weights_head=fresh",
        "--data.image_size=56",
    )
    found = run([*fit_args, *FINETUNE, *options, "--model.ema_decay=0.9", "--model.optimizer.lr=0.1"])
    network = build_model(arch, 4, 56, **OPTIONS[arch])
    load_weights(network, source, head="fresh")
    start = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    start |= {name: torch.zeros_like(tensor) for name, tensor in start.items() if name.startswith("model.head.")}
    expected = {name: tensor.float() for name, tensor in start.items() if tensor.is_floating_point()}
    for step in (1, 2, 3, 4):
        saved = state(found, step)
        expected = {name: 0.9 * mean + 0.1 * saved["raw_state_dict"][name] for name, mean in expected.items()}
        for name, mean in expected.items():
            assert torch.allclose(saved["state_dict"][name], mean, rtol=1e-5, atol=1e-6), (step, name)
    moved = max((mean - start[name]).abs().max().item() for name, mean in expected.items())
    assert moved > 1e-4


def test_a_rate_is_chosen_on_held_out_images_and_then_all_are_trained_on(fit_args, pretrained, tmp_path, monkeypatch):
    """The two commands of docs/transfer.md: a sweep over rates, `vitlight transfer --final`, and the sweep it writes."""
    monkeypatch.chdir(tmp_path)
    arch, before = pretrained
    source = before.checkpoints / "step-000000040.ckpt"
    common = [*fit_args, *FINETUNE, *network_args(arch), f"--model.weights={source}", "--model.weights_head=fresh"]
    found = [run([*common, "--run.name=search", f"--model.optimizer.lr={lr}"]) for lr in (1e-6, 0.05)]
    table = build_transfer_table([found[0].path.parent])
    (cell,) = table.cells.values()
    results = [each.read_result() for each in found]
    best = max(results, key=lambda result: (result["val_top1"], -result["lr"]))  # few images: they may be even
    assert (cell.lr, cell.values, cell.num_settings) == (best["lr"], (best["top1"],), 2)
    assert main(["transfer", str(found[0].path.parent), "--final", "final.yaml"]) == 0
    (only,) = load_sweep("final.yaml").cells()
    final = run([*only.args, "--run.name=search_final"])
    result = final.read_result()
    assert (result["lr"], result["num_train_samples"], result["val_top1"]) == (best["lr"], 200, None)
    assert [each["num_train_samples"] for each in results] == [160, 160]
    assert result["weights_digest"] == best["weights_digest"]
    config = yaml.safe_load(final.experiment_path.read_text())
    assert config["model"]["weights"] == str(source)
    both = build_transfer_table([found[0].path.parent, final.path.parent])
    (cell,) = both.cells.values()
    assert (cell.values, cell.num_settings) == ((result["top1"],), 2)

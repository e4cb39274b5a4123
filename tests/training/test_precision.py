"""Each family trains in each precision, and with its activations recomputed, through `fit`."""

import pytest
import torch
from torch import nn

from tests.training.test_run import assert_bit_equal, final_state
from vitlight.cli import main
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run

FAMILIES = {
    "vit_nano1": {"depth": 2, "drop_path_rate": 0.2, "dropout_rate": 0.1},
    "vit_r_ti16": {"depth": 1, "width": 32, "num_heads": 2, "mlp_dim": 64, "drop_path_rate": 0.2},
    "coatnet_nano1": {"drop_path_rate": 0.2},
    "resnet_nano1": {"drop_path_rate": 0.2},
    "bit_r50x1": {"depths": [1, 1], "drop_path_rate": 0.2},
}


def run_of(fit_args: list[str], arch: str, *changes: str) -> RunDirectory:
    options = f"--model.model_options={FAMILIES[arch]}"
    args = [*fit_args, f"--model.arch={arch}", options, "--data.image_size=32", "--data.val_fraction=0", *changes]
    assert main(args) == 0
    return RunDirectory(resolve_run(args).run_dir)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_the_loss_falls_in_bfloat16(arch, precision, fit_args):
    """The classes are bright quadrants; 16 images of them are learned by heart within 30 steps."""
    settings = ["--model.optimizer.lr=0.003", "--run.log_every_steps=5", "--model.duration.samples=480"]
    settings += ["--data.num_train_samples=16", "--data.augmentation.flip=false", "--data.augmentation.min_area=1"]
    run = run_of(fit_args, arch, f"--trainer.precision={precision}", *settings)
    losses = [row["train/loss"] for row in run.rows() if row["event"] == "train"]
    assert losses[-1] < 0.6 * losses[0]
    weights = [value for value in final_state(run)["state_dict"].values() if value.is_floating_point()]
    assert {value.dtype for value in weights} == {torch.bfloat16 if precision == "bf16-true" else torch.float32}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_checkpointed_activations_give_the_same_bits(arch, precision, fit_args, tmp_path):
    """With dropout, drop path and batch statistics: the second pass draws what the first did, and counts no batch."""
    changes = ["--model.duration.samples=48", f"--trainer.precision={precision}"]
    kept = run_of(fit_args, arch, *changes)
    state = final_state(kept)
    changes += ["--model.activation_checkpointing=true", f"--run.root={tmp_path / 'again'}"]
    recomputed = run_of(fit_args, arch, *changes)
    assert recomputed.path.name == kept.path.name  # the same result, by its name
    assert_bit_equal(final_state(recomputed)["state_dict"], state["state_dict"])
    assert recomputed.read_result()["train_flops"] == kept.read_result()["train_flops"]  # nominal: see cost


def test_checkpointing_reaches_the_network(fit_args, monkeypatch):
    calls = []
    original = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        torch.utils.checkpoint,
        "checkpoint",
        lambda block, *args, **kw: calls.append(block) or original(block, *args, **kw),
    )
    run_of(fit_args, "vit_nano1", "--model.duration.samples=16", "--model.activation_checkpointing=true")
    assert len(calls) == 2  # its blocks, once for the step, and not in evaluation
    assert all(isinstance(block, nn.Module) for block in calls)

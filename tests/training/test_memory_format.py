"""Convolutional networks run in one memory format from the loader's images to the last gradient."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.test_run import final_state
from vitlight.cli import main
from vitlight.errors import InputError
from vitlight.models import build_model
from vitlight.training.classifier import ImageClassifier
from vitlight.training.memory_format import choose_memory_format
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run

NETWORKS = {
    "coatnet_nano1": {},
    "resnet_nano1": {},
    "bit_r50x1": {"depths": [1, 1]},
    "vit_r_ti16": {"depth": 1, "width": 32, "num_heads": 2, "mlp_dim": 64},
}


class Layouts(TorchDispatchMode):
    """Notes the maps that a convolution or norm, forward or backward, gets in another memory format than `wanted`."""

    def __init__(self, wanted: torch.memory_format) -> None:
        super().__init__()
        self.wanted, self.num_maps, self.others = wanted, 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(kind in name for kind in ("convolution", "batch_norm", "group_norm")):
            for value in args[: 2 if "backward" in name else 1]:  # what follows are kernels and statistics
                if value.ndim == 4 and min(value.shape[1:]) > 1:
                    self.num_maps += 1
                    if not value.is_contiguous(memory_format=self.wanted):
                        self.others.append((name, tuple(value.shape), value.stride()))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("arch", "wanted", "channels"),
    [
        *((arch, "channels_last", 3) for arch in NETWORKS),
        ("resnet_nano1", "channels_last", 1),  # strides alone hardly tell the formats of one channel apart
        ("resnet_nano1", "contiguous", 3),
    ],
)
def test_every_map_of_a_run_has_the_format_of_the_images(arch, wanted, channels, fit_args, monkeypatch):
    layouts = Layouts(torch.channels_last if wanted == "channels_last" else torch.contiguous_format)
    step = ImageClassifier.training_step
    images = []

    def watched(self, batch, batch_idx):
        self.model.register_forward_pre_hook(lambda _, args: images.append(args[0]))
        layouts.__enter__()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", watched)
    monkeypatch.setattr(ImageClassifier, "on_after_backward", lambda self: layouts.__exit__(None, None, None))
    changes = [f"--model.arch={arch}", f"--model.model_options={NETWORKS[arch]}", f"--model.memory_format={wanted}"]
    changes += ["--data.image_size=32", "--data.val_fraction=0", f"--data.channels={channels}"]
    assert main([*fit_args, *changes, "--model.duration.samples=16"]) == 0
    assert layouts.others == []
    assert layouts.num_maps >= 6
    assert images[0].is_contiguous(memory_format=layouts.wanted)


def test_the_choice_follows_layers_device_and_precision():
    chosen = {
        (arch, device, precision): choose_memory_format("auto", build_model(arch, 4, 32, **options), device, precision)
        for arch, options in {"vit_nano1": {}, "resnet_nano1": {}, "bit_r50x1": {"depths": (1, 1)}}.items()
        for device in ("cpu", "cuda")
        for precision in ("32-true", "bf16-mixed")
    }
    assert {chosen["vit_nano1", *rest] for rest in (("cpu", "32-true"), ("cuda", "bf16-mixed"))} == {
        torch.preserve_format
    }
    others = {key: value for key, value in chosen.items() if key[0] != "vit_nano1"}
    assert {key for key, value in others.items() if value != torch.channels_last} == {
        ("bit_r50x1", "cpu", "bf16-mixed")
    }
    convolution = nn.Conv2d(3, 4, 3)
    assert choose_memory_format("contiguous", convolution, "cuda", "32-true") == torch.contiguous_format
    assert choose_memory_format("channels_last", convolution, "cpu", "bf16-mixed") == torch.channels_last
    with pytest.raises(InputError, match=r"model\.memory_format=nhwc is not one of auto, channels_last, contiguous"):
        choose_memory_format("nhwc", convolution, "cpu", "32-true")


def test_a_run_goes_on_in_another_format(fit_args, capfd):
    """The fused optimizer would mix up weights and their state, did these keep the format they were saved in."""
    args = [*fit_args, "--model.arch=resnet_nano1", "--data.val_fraction=0", "--run.checkpoint_every_steps=4"]
    assert main([*args, "--model.memory_format=channels_last"]) == 0
    run = RunDirectory(resolve_run(args).run_dir)
    whole = final_state(run)
    max(run.checkpoints.glob("*.ckpt")).unlink()
    run.result_path.unlink()
    assert main([*args, "--model.memory_format=contiguous"]) == 0
    assert "resumes at step 8 of 12" in capfd.readouterr().err
    resumed = final_state(run)
    torch.testing.assert_close(resumed["state_dict"], whole["state_dict"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(means(resumed), means(whole), rtol=1e-2, atol=1e-5)


def means(checkpoint: dict) -> list[torch.Tensor]:
    """The optimizer's running means of the gradients."""
    return [state["exp_avg"] for state in checkpoint["optimizer_states"][0]["state"].values()]

"""`vitlight convert`: any layout to any other, sizes read off the tensors, and what it refuses."""

import json
import math

import pytest
import torch

from tests.models.layouts.test_google import assert_same_weights, randomised
from vitlight.cli import main
from vitlight.models import build_model
from vitlight.models.coatnet import TIMM_OPTIONS
from vitlight.models.weights import load_weights, save_weights

WIDTHS = {"width": 64, "depth": 2, "num_heads": 2, "mlp_dim": 128, "patch_size": 8}
OPTIONS = [text for key, value in WIDTHS.items() for text in ("--option", f"{key}={value}")]
VIT = ["--arch", "vit_ti16", *OPTIONS]


@pytest.fixture
def vit(tmp_path):
    """A ViT of 7 classes at 32 px, and its weights in the file vit.safetensors."""
    model = randomised(build_model("vit_ti16", num_classes=7, image_size=32, **WIDTHS))
    save_weights(model, tmp_path / "vit.safetensors")
    return model


def convert(tmp_path, source, target, *args):
    return main(["convert", str(tmp_path / source), str(tmp_path / target), *args])


def test_through_every_layout_and_back(vit, tmp_path, capsys):
    steps = [("a.npz", None), ("b.safetensors", "timm"), ("c.pt", "huggingface"), ("d.safetensors", None)]
    source = "vit.safetensors"
    for target, layout in steps:
        assert convert(tmp_path, source, target, *VIT, *(["--to", layout] if layout else [])) == 0
        source = target
    size = f"vit_ti16 at 32 px, {sum(p.numel() for p in vit.parameters()):,} parameters"
    paths = [str(tmp_path / name) for name in ("vit.safetensors", *(target for target, _ in steps))]
    layouts = ["vitlight", "google", "timm", "huggingface", "vitlight"]
    assert capsys.readouterr().out.splitlines() == [
        f"{paths[i]} ({layouts[i]}): {size} -> {paths[i + 1]} ({layouts[i + 1]})" for i in range(4)
    ]
    other = build_model("vit_ti16", num_classes=7, image_size=32, **WIDTHS)
    load_weights(other, tmp_path / "d.safetensors")
    assert_same_weights(vit, other)


def test_another_resolution_and_other_classes(vit, tmp_path, capsys):
    args = [*VIT, "--image-size", "48", "--num-classes", "3", "--fresh-head", "--to", "timm"]
    assert convert(tmp_path, "vit.safetensors", "w.safetensors", *args) == 0
    assert "posemb resized from 4x4 to 6x6, fresh head of 3 classes -> " in capsys.readouterr().out
    other = build_model("vit_ti16", num_classes=3, image_size=48, **WIDTHS)
    assert load_weights(other, tmp_path / "w.safetensors").layout == "timm"
    assert other.head.weight.abs().max() == 0
    assert torch.equal(other.norm.weight, vit.norm.weight)


def test_a_checkpoint_of_a_run(tmp_path, capsys):
    model = randomised(build_model("coatnet_nano1", num_classes=10, image_size=28, in_channels=1))
    state = {f"model._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    checkpoint = {"state_dict": state, "pytorch-lightning_version": "2.6.6", "epoch": 3}
    torch.save(checkpoint, tmp_path / "step-000000007.ckpt")
    assert convert(tmp_path, "step-000000007.ckpt", "w.safetensors", "--arch", "coatnet_nano1") == 0
    assert "(vitlight): coatnet_nano1 at 28 px, " in capsys.readouterr().out
    other = build_model("coatnet_nano1", num_classes=10, image_size=28, in_channels=1)
    load_weights(other, tmp_path / "w.safetensors")
    assert_same_weights(model, other)


def test_bias_tables_of_another_resolution(tmp_path, capsys):
    save_weights(randomised(build_model("coatnet_nano1", num_classes=10, image_size=32)), tmp_path / "c.safetensors")
    assert convert(tmp_path, "c.safetensors", "w.pt", "--arch", "coatnet_nano1", "--image-size", "64") == 0
    said = capsys.readouterr().out
    assert "coatnet_nano1 at 64 px" in said
    assert "resized from 15x15 to 31x31" in said


def test_a_convolutional_source_tells_its_channels_and_classes(tmp_path, capsys):
    model = build_model("resnet_nano1", num_classes=5, image_size=32, in_channels=1)
    save_weights(model, tmp_path / "r.safetensors")
    assert convert(tmp_path, "r.safetensors", "w.safetensors", "--arch", "resnet_nano1") == 0
    assert f"{sum(math.prod(p.shape) for p in model.parameters()):,} parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "args", "said"),
    [
        ("w.safetensors", [*VIT, "--num-classes", "3"], "7 classes"),
        ("w.safetensors", [*VIT, "--num-classes", "3"], "--fresh-head"),
        ("w.safetensors", [*VIT, "--in-channels", "1"], "in_channels=3"),
        ("w.safetensors", [*VIT, "--in-channels", "0"], "--in-channels=0 is not at least 1"),
        ("w.safetensors", [*VIT, "--image-size", "30"], "image_size=30"),
        ("w.safetensors", [*VIT, "--option", "depth=3"], "blocks.2."),
        ("w.safetensors", [*VIT, "--option", "pool=gap"], "class_token"),
        ("w.safetensors", [*VIT, "--option", "pool"], "--option pool is not KEY=VALUE"),
        ("w.safetensors", [*VIT, "--option", "pol=gap"], "did you mean pool"),
        ("w.safetensors", [*VIT, "--option", "image_size=48"], "--image-size 48"),
        ("w.safetensors", [*VIT, "--option", "qk_norm=yes"], "qk_norm='yes'"),
        ("w.safetensors", [*VIT, "--from", "timm"], "layout='timm'"),
        ("w.safetensors", ["--arch", "vit_ti61"], "blocks"),
        ("w.safetensors", ["--arch", "vitt_ti16"], "vit_ti16"),
        ("w.safetensors", ["--arch", "resnet_nano1"], "lack"),
        ("w.safetensors", [*VIT, "--to", "keras"], "--to"),
        ("w.h5", VIT, ".safetensors"),
        ("no/w.safetensors", VIT, "no"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(vit, tmp_path, capsys, target, args, said):
    assert convert(tmp_path, "vit.safetensors", target, *args) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.err.startswith("vitlight: error: ")
    assert said in captured.err
    assert captured.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["vit.safetensors"]


def test_a_layout_that_has_no_such_model(tmp_path, capsys):
    save_weights(build_model("coatnet_nano1", num_classes=10, image_size=32), tmp_path / "c.safetensors")
    assert convert(tmp_path, "c.safetensors", "w.npz", "--arch", "coatnet_nano1") == 2
    assert "layout 'google' has ViT, hybrid and BiT models, and no CoAtNet" in capsys.readouterr().err
    assert not (tmp_path / "w.npz").exists()


def test_a_coatnet_that_is_none_of_timms_is_noted(tmp_path, capsys):
    shape = {"widths": [8, 8, 16, 16, 32], "depths": [2, 1, 1, 1, 1], "head_dim": 8}
    for se_activation in ("silu", "gelu"):
        options = shape | TIMM_OPTIONS | {"se_activation": se_activation}
        save_weights(build_model("coatnet_0", num_classes=5, image_size=64, **options), tmp_path / "c.safetensors")
        pairs = [part for name, value in options.items() for part in ("--option", f"{name}={json.dumps(value)}")]
        args = ["--arch", "coatnet_0", *pairs, "--to", "timm"]
        assert convert(tmp_path, "c.safetensors", "w.safetensors", *args) == 0
        said = capsys.readouterr().err
        if se_activation == "silu":
            assert said == ""
        else:
            assert len(said.splitlines()) == 1
            assert "they have se_activation='silu' (not 'gelu');" in said


def test_a_source_that_is_not_there(tmp_path, capsys):
    assert convert(tmp_path, "no.safetensors", "w.pt", *VIT) == 2
    assert str(tmp_path / "no.safetensors") in capsys.readouterr().err


def test_a_target_that_stands_is_kept_when_the_source_does_not_fit(vit, tmp_path):
    (tmp_path / "w.pt").write_text("kept")
    assert convert(tmp_path, "vit.safetensors", "w.pt", *VIT, "--option", "depth=1") == 2
    assert (tmp_path / "w.pt").read_text() == "kept"

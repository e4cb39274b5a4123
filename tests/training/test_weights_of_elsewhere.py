"""Weights of other projects: evaluated at the size that timm says of them, and of use without a classifier."""

from pathlib import Path

import pytest
import torch

from tests.reference_libraries import reference
from tests.trained_runs import random_model, random_pixels
from vitlight.errors import InputError
from vitlight.models.heads import classifier_inputs
from vitlight.models.preprocessing import usual_preprocessing
from vitlight.models.weight_files import write_state
from vitlight.models.weights import convert_state, save_weights
from vitlight.training.trained import load_trained

TINY = {"depth": 1, "width": 16, "mlp_dim": 32, "num_heads": 2}


@pytest.fixture
def fetched_as(monkeypatch):
    """Has every remote name fetch one file."""

    def fetch_as(path: Path) -> None:
        monkeypatch.setattr("vitlight.training.pretrained.fetch_weights", lambda source: path)

    return fetch_as


def test_timms_weights_are_evaluated_at_the_size_of_their_tag(tmp_path, fetched_as):
    reference("timm")
    save_weights(random_model("resnet18", 3, 64), tmp_path / "weights.safetensors", "timm")
    fetched_as(tmp_path / "weights.safetensors")
    # As models/resnet.py of timm 1.0.31 has them; trained at 224, 224, 160 and 224 px.
    for source, arch, image_size, crop, unlike in (
        ("timm:resnet18.a1_in1k", None, 288, 1.0, ""),
        ("hf-hub:timm/resnet18.a1_in1k@main", "resnet18", 288, 1.0, ""),
        ("timm:resnet18.a3_in1k", None, 224, 0.95, ""),
        ("timm:resnet18.tv_in1k", None, 224, 0.875, "interpolation bicubic in place of timm's bilinear, "),
    ):
        trained = load_trained(source, arch=arch)
        assert (trained.image_size, trained.crop_fraction) == (image_size, crop)
        name = source.removeprefix("hf-hub:timm/").removeprefix("timm:").partition("@")[0]
        assert f"(timm's for {name} at {image_size} px), {unlike}digest " in trained.source
        assert "px in place of" not in trained.source
    smaller = load_trained("timm:resnet18.a1_in1k", image_size=96)
    assert (smaller.image_size, smaller.crop_fraction) == (96, 1.0)
    assert "at 96 px in place of 288, " in smaller.source


def test_what_timm_does_otherwise_is_said(tmp_path, fetched_as):
    reference("timm")
    name = "convnextv2_nano.fcmae_ft_in22k_in1k_384"
    save_weights(random_model("timm:convnextv2_nano", 3, 224), tmp_path / "weights.safetensors")
    fetched_as(tmp_path / "weights.safetensors")
    trained = load_trained(f"timm:{name}")
    assert (trained.image_size, trained.crop_fraction) == (384, 1.0)
    assert f"(timm's for {name} at 384 px), crop_mode center in place of timm's squash, digest" in trained.source
    bit = usual_preprocessing("bit_r50x1", "resnetv2_50x1_bit.goog_in21k_ft_in1k")
    assert (bit.image_size, bit.crop_fraction) == (448, 1.0)
    assert bit.unlike == ("interpolation bicubic in place of timm's bilinear",)
    grey = bit.for_channels(1)
    assert (grey.mean, grey.image_size, grey.unlike) == ((0.5,), 448, bit.unlike)


def test_tensors_tell_the_size_before_timm_does(tmp_path, fetched_as):
    reference("timm")
    save_weights(random_model("vit_ti16", 7, 48, **TINY), tmp_path / "weights.safetensors", "timm")
    fetched_as(tmp_path / "weights.safetensors")
    name = "hf-hub:timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k"
    trained = load_trained(name, arch="vit_ti16", model_options=TINY)
    assert (trained.image_size, trained.crop_fraction) == (48, 1.0)
    assert "at 384 px), digest" in trained.source


@pytest.mark.parametrize(
    ("arch", "options", "layout", "head"),
    [
        ("vit_ti16", TINY, "timm", "head."),
        ("vit_ti16", {**TINY, "pool": "map"}, "google", "params/head/"),
        ("vit_ti16", TINY, "huggingface", "classifier."),
        ("resnet_nano1", {}, "vitlight", "head."),
        ("timm:test_vit", {}, "timm", "head."),
    ],
)
def test_weights_without_a_classifier_are_loaded_and_give_features(tmp_path, arch, options, layout, head):
    is_timms = arch.startswith("timm:")
    if is_timms:
        reference("timm")
    size = 160 if is_timms else 32
    model = random_model(arch, 7, size, **options)
    state = model.network.state_dict() if is_timms else convert_state(model, layout)
    bare = {name: tensor for name, tensor in state.items() if not name.startswith(head)}
    assert len(bare) == len(state) - 2
    write_state(state, tmp_path / "whole.safetensors")
    write_state(bare, tmp_path / "bare.safetensors")
    whole, trained = (
        load_trained(tmp_path / f"{name}.safetensors", arch=arch, image_size=size, model_options=options)
        for name in ("whole", "bare")
    )
    assert (whole.has_classifier, trained.has_classifier, trained.num_classes) == (True, False, 1000)
    assert f"{arch} in {layout}'s layout, no classifier, " in trained.source
    assert "no classifier" not in whole.source
    images = random_pixels(2, 3, size)
    features = []
    for each in (whole, trained):
        with torch.no_grad(), classifier_inputs(each.network) as caught:
            each.network(each.normalize(images))
        features.append(torch.cat(caught, 1))
    assert torch.equal(*features)
    assert features[0].abs().max() > 0.1
    with pytest.raises(InputError, match=r"layout: these weights have no classifier; `vitlight probe` .*") as error:
        trained.logits(images)
    assert "\n" not in str(error.value)


def test_a_bare_vit_of_transformers_leaves_its_pooler_out(tmp_path):
    state = convert_state(random_model("vit_ti16", 7, 32, **TINY), "huggingface")
    state = {name.removeprefix("vit."): state[name] for name in state if not name.startswith("classifier")}
    state |= {"pooler.dense.weight": torch.eye(16), "pooler.dense.bias": torch.zeros(16)}
    write_state(state, tmp_path / "bare.safetensors")
    trained = load_trained(tmp_path / "bare.safetensors", arch="vit_ti16", model_options=TINY)
    assert "in huggingface's layout, no classifier, 2 tensors ignored, " in trained.source
    assert not trained.has_classifier

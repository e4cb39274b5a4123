"""Hugging Face files: transformers reads what we write, and we read what it writes."""

import logging
import re

import pytest
import torch

from tests.models.layouts.test_google import VIT, assert_same_weights, images, randomised
from tests.reference_libraries import reference
from vitlight.errors import InputError
from vitlight.models import build_model
from vitlight.models.weights import convert_state, load_weights, save_weights

EPS = 1e-12  # of transformers' ViTConfig


@pytest.fixture(scope="module")
def hf():
    module = reference("transformers.models.vit.modeling_vit")
    bars = reference("transformers.utils.logging")
    bars.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return module


def config(hf):
    return hf.ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
        num_labels=7,
    )


def ours(**options):
    return build_model("vit_ti16", norm_eps=EPS, **VIT, **options)


def logits(model, x):
    with torch.no_grad():
        result = model(x)
    return result if isinstance(result, torch.Tensor) else result.logits


def test_transformers_reads_what_we_write(hf, tmp_path):
    model = randomised(ours())
    config(hf).save_pretrained(tmp_path)
    save_weights(model, tmp_path / "model.safetensors", "huggingface")
    theirs, info = hf.ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    x = images(32)
    expected = logits(theirs.eval(), x)
    assert 0.1 < expected.abs().max() < 100
    assert (logits(model, x) - expected).abs().max() < 1e-4


def test_we_read_what_transformers_writes(hf, tmp_path):
    theirs = randomised(hf.ViTForImageClassification(config(hf)))
    theirs.save_pretrained(tmp_path)
    from_file, from_memory = ours(), ours()
    report = load_weights(from_file, tmp_path / "model.safetensors")
    assert (report.layout, report.num_tensors) == ("huggingface", len(theirs.state_dict()))
    load_weights(from_memory, theirs.state_dict())
    assert_same_weights(from_file, from_memory)
    x = images(32)
    assert (logits(from_file.eval(), x) - logits(theirs, x)).abs().max() < 1e-4


def test_a_round_trip_changes_no_bit(tmp_path):
    model, other = randomised(ours()), randomised(ours(), seed=1)
    save_weights(model, tmp_path / "w.safetensors", "huggingface")
    assert load_weights(other, tmp_path / "w.safetensors").layout == "huggingface"
    assert_same_weights(model, other)


def test_a_bare_model_with_its_pooler(hf, tmp_path):
    theirs = randomised(hf.ViTModel(config(hf)))
    theirs.save_pretrained(tmp_path)
    model = ours(representation_layer=True).eval()
    report = load_weights(model, tmp_path / "model.safetensors", head="fresh")
    assert report.fresh == ("head.weight", "head.bias")
    seen = []
    model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(images(32))
        expected = theirs(images(32)).pooler_output
    assert (seen[0] - expected).abs().max() < 1e-4
    left_out = load_weights(ours(), tmp_path / "model.safetensors", head="fresh").ignored
    assert sorted(left_out) == ["vit.pooler.dense.bias", "vit.pooler.dense.weight"]
    with pytest.raises(InputError, match=r"vit\.pooler\.dense\.\w+.*representation_layer"):
        load_weights(ours(), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="representation_layer=True"):
        save_weights(model, tmp_path / "w.safetensors", "huggingface")
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(
    ("arch", "options", "said"),
    [
        ("vit_ti16", {"pool": "gap"}, "pool='gap'"),
        ("vit_ti16", {"posemb": "sincos2d"}, "posemb='sincos2d'"),
        ("vit_ti16", {"posemb_on_class_token": False}, "posemb_on_class_token=False"),
        ("vit_ti16", {"num_registers": 4}, "num_registers=4"),
        ("vit_ti16", {"layer_scale": 1e-5}, "layer_scale=1e-05"),
        ("vit_ti16", {"qk_norm": True}, "qk_norm=True"),
        ("vit_r_ti16", {}, "backbone="),
        ("bit_r50x1", {}, "no BiT"),
    ],
)
def test_what_transformers_has_no_vit_for(arch, options, said):
    with torch.device("meta"):
        model = build_model(arch, **options)
    with pytest.raises(InputError, match=re.escape(said)) as raised:
        convert_state(model, "huggingface")
    assert "layout 'huggingface'" in str(raised.value)

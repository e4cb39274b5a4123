"""Google's .npz: what we write, timm's readers of such files load; what their other projects write, we load."""

import math
import re

import numpy as np
import pytest
import torch

from tests.reference_libraries import reference
from vitlight.errors import InputError
from vitlight.models import build_model
from vitlight.models.weights import convert_state, load_weights, save_weights

TINY = {"width": 64, "depth": 2, "num_heads": 2, "mlp_dim": 128, "num_classes": 7}
VIT = {**TINY, "image_size": 32, "patch_size": 8}
BIT = {"num_classes": 7, "image_size": 64}


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter drawn anew, zeros too, so that logits are of order 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            drawn /= math.sqrt(parameter[0].numel()) if "token" not in name and "posemb" not in name else 2
        else:
            drawn = 0.2 * drawn + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        parameter.data.copy_(drawn)
    return model.eval()


def images(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def timm_vit(**options):
    vit = reference("timm.models.vision_transformer").VisionTransformer
    return vit(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, mlp_ratio=2, num_classes=7, **options)


def timm_hybrid(name: str, **options):
    build = getattr(reference("timm.models.vision_transformer_hybrid"), name)
    return build(embed_dim=64, depth=2, num_heads=2, mlp_ratio=2, num_classes=7, img_size=64, **options)


def timm_bit():
    return reference("timm").create_model("resnetv2_50x1_bit", num_classes=7)


MODELS = {
    "vit_ti16": lambda: build_model("vit_ti16"),
    "vit_cls": lambda: build_model("vit_ti16", **VIT),
    "vit_gap": lambda: build_model("vit_ti16", pool="gap", **VIT),
    "vit_map": lambda: build_model("vit_ti16", pool="map", **VIT),
    "vit_cls_without_position": lambda: build_model("vit_ti16", posemb_on_class_token=False, **VIT),
    "hybrid_stem": lambda: build_model("vit_r_ti16", **TINY, image_size=64),
    "hybrid_r26": lambda: build_model("vit_r26_s32", **TINY, image_size=64),
    "bit": lambda: build_model("bit_r50x1", **BIT),
}
THEIRS = {
    "vit_ti16": lambda: reference("timm").create_model("vit_tiny_patch16_224"),
    "vit_cls": timm_vit,
    "vit_gap": lambda: timm_vit(class_token=False, global_pool="avg", fc_norm=False),
    "vit_map": lambda: timm_vit(class_token=False, global_pool="map"),
    "vit_cls_without_position": lambda: timm_vit(no_embed_class=True),
    "hybrid_stem": lambda: timm_hybrid("vit_tiny_r_s16_p8_224"),
    "hybrid_r26": lambda: timm_hybrid("vit_small_r26_s32_224"),
    "bit": timm_bit,
}
# What timm has no reader for.
OURS_ALONE = {
    "vit_representation": lambda: build_model("vit_ti16", representation_layer=True, **VIT),
    "vit_sincos2d": lambda: build_model("vit_ti16", posemb="sincos2d", pool="gap", **VIT),
    "vit_no_posemb": lambda: build_model("vit_ti16", posemb="none", pool="gap", **VIT),
}


def assert_same_weights(model: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("kind", MODELS)
def test_timm_reads_what_we_write(kind, tmp_path):
    ours, theirs = randomised(MODELS[kind]()), THEIRS[kind]().eval()
    save_weights(ours, tmp_path / "w.npz", "google")
    with torch.no_grad():
        theirs.load_pretrained(str(tmp_path / "w.npz"))
        x = images(ours.config.image_size)
        expected, got = theirs(x), ours(x)
    assert 0.1 < expected.abs().max() < 100
    assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", [*MODELS, *OURS_ALONE])
def test_a_round_trip_changes_no_bit(kind, tmp_path):
    build = (MODELS | OURS_ALONE)[kind]
    ours, other = randomised(build()), randomised(build(), seed=1)
    save_weights(ours, tmp_path / "w.npz", "google")
    report = load_weights(other, tmp_path / "w.npz")
    assert (report.layout, report.resized, report.fresh, report.ignored) == ("google", {}, (), ())
    assert_same_weights(ours, other)


def test_a_fresh_head_leaves_pre_logits_out_with_the_head_or_loads_it(tmp_path):
    source = randomised(OURS_ALONE["vit_representation"]())
    save_weights(source, tmp_path / "w.npz", "google")
    for representation_layer in (False, True):
        model = randomised(build_model("vit_ti16", representation_layer=representation_layer, **VIT), seed=1)
        head = model.head.weight.clone()
        report = load_weights(model, tmp_path / "w.npz", head="fresh")
        assert sorted(report.ignored) == ([] if representation_layer else ["pre_logits/bias", "pre_logits/kernel"])
        assert torch.equal(model.head.weight, head) and torch.equal(model.norm.weight, source.norm.weight)
        if representation_layer:
            assert torch.equal(model.representation.weight, source.representation.weight)
        else:
            with pytest.raises(InputError, match="pre_logits/bias"):
                load_weights(model, tmp_path / "w.npz")


def test_the_representation_layer_is_pre_logits(tmp_path):
    ours = randomised(OURS_ALONE["vit_representation"]())
    save_weights(ours, tmp_path / "w.npz", "google")
    theirs = timm_vit().eval()
    with torch.no_grad():
        theirs.load_pretrained(str(tmp_path / "w.npz"))
        x = theirs.forward_head(theirs.forward_features(images(32)), pre_logits=True).numpy()
        got = ours(images(32)).numpy()
    with np.load(tmp_path / "w.npz") as w:
        x = np.tanh(x @ w["pre_logits/kernel"] + w["pre_logits/bias"])
        expected = x @ w["head/kernel"] + w["head/bias"]
    assert np.abs(got - expected).max() < 1e-4


def test_names_and_shapes_are_those_of_the_published_files():
    state = convert_state(build_model("vit_ti16"), "google")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert len(shapes) == 12 * 16 + 8  # 16 tensors a block in the 86 million parameters of every ViT-B file, too
    block = "Transformer/encoderblock_11"
    for name, shape in {
        "cls": (1, 1, 192),
        "embedding/kernel": (16, 16, 3, 192),
        "Transformer/posembed_input/pos_embedding": (1, 197, 192),
        f"{block}/LayerNorm_0/scale": (192,),
        f"{block}/MultiHeadDotProductAttention_1/query/kernel": (192, 3, 64),
        f"{block}/MultiHeadDotProductAttention_1/value/bias": (3, 64),
        f"{block}/MultiHeadDotProductAttention_1/out/kernel": (3, 64, 192),
        f"{block}/LayerNorm_2/bias": (192,),
        f"{block}/MlpBlock_3/Dense_0/kernel": (192, 768),
        "Transformer/encoder_norm/bias": (192,),
        "head/kernel": (192, 1000),
    }.items():
        assert shapes[name] == shape
    state = convert_state(build_model("bit_r50x1", **BIT), "google")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name, shape in {
        "resnet/root_block/standardized_conv2d/kernel": (7, 7, 3, 64),
        "resnet/block1/unit01/a/group_norm/gamma": (64,),
        "resnet/block1/unit01/a/proj/standardized_conv2d/kernel": (1, 1, 64, 256),
        "resnet/block2/unit02/b/standardized_conv2d/kernel": (3, 3, 128, 128),
        "resnet/group_norm/beta": (2048,),
        "resnet/head/conv2d/kernel": (1, 1, 2048, 7),
    }.items():
        assert shapes[name] == shape


def as_big_vision(state: dict[str, torch.Tensor], stacked: bool, prefix: str) -> dict[str, torch.Tensor]:
    """vision_transformer's names turned into big_vision's, its blocks stacked as by a scan if asked."""
    names = {"MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0", "LayerNorm_2": "LayerNorm_1"}
    names |= {"MlpBlock_3": "MlpBlock_0", "Transformer/posembed_input/": ""}
    renamed = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    if stacked:
        first = [name for name in renamed if "encoderblock_0/" in name]
        for name in first:
            blocks = [renamed.pop(name.replace("_0/", f"_{i}/", 1)) for i in range(TINY["depth"])]
            renamed[name.replace("encoderblock_0", "encoderblock")] = torch.stack(blocks)
    return {prefix + name: tensor for name, tensor in renamed.items()}


@pytest.mark.parametrize(("prefix", "stacked"), [("params/", False), ("params/", True), ("", False)])
def test_big_vision_names(prefix, stacked):
    ours, other = randomised(MODELS["vit_gap"]()), MODELS["vit_gap"]()
    state = as_big_vision(convert_state(ours, "google"), stacked, prefix)
    if prefix:
        state["opt/mu/head/kernel"] = torch.zeros(64, 7)
    report = load_weights(other, state)
    assert (report.layout, report.ignored) == ("google", ())
    assert_same_weights(ours, other)


def test_published_names_where_we_write_big_visions():
    ours, other = randomised(MODELS["vit_map"]()), MODELS["vit_map"]()
    state = {}
    for name, tensor in convert_state(ours, "google").items():
        for new, old in {"params/": "", "pos_embedding": "Transformer/pos_embedding"}.items():
            name = name.replace(new, old)
        if not name.startswith("MAPHead_0"):
            for new, old in {"Attention_0": "Attention_1", "LayerNorm_1": "LayerNorm_2", "Block_0": "Block_3"}.items():
                name = name.replace(new, old)
        state[name] = tensor
    load_weights(other, state)
    assert_same_weights(ours, other)


def test_the_image_half_of_an_image_text_model():
    ours, other = randomised(MODELS["vit_map"]()), randomised(MODELS["vit_map"](), seed=1)
    written = convert_state(ours, "google")
    state = {f"params/img/{name.removeprefix('params/')}": tensor for name, tensor in written.items()}
    state = {name: tensor for name, tensor in state.items() if "/head/" not in name}
    state |= {"params/txt/head/kernel": torch.zeros(3, 3), "params/t": torch.zeros(1)}
    other.head.load_state_dict(ours.head.state_dict())
    assert load_weights(other, state, head="fresh").fresh == ("head.weight", "head.bias")
    assert_same_weights(ours, other)


def test_training_states_of_vision_transformer():
    ours, other = randomised(MODELS["hybrid_r26"]()), MODELS["hybrid_r26"]()
    state = {}
    for name, tensor in convert_state(ours, "google").items():
        is_group_norm = re.search(r"gn\w+/", name) is not None
        state[f"opt/target/{name}"] = tensor[None, None, None] if is_group_norm else tensor
    state["opt/state/step"] = torch.tensor(1)
    load_weights(other, state)
    assert_same_weights(ours, other)


@pytest.mark.parametrize(
    ("arch", "options", "said"),
    [
        ("vit_ti16", {"num_registers": 4, "posemb_on_class_token": False}, "num_registers=4"),
        ("vit_ti16", {"pool": "gap", "class_token": True}, "class_token=True"),
        ("vit_ti16", {"pool": "gap", "norm_position": "after_pool"}, "norm_position='after_pool'"),
        ("vit_ti16", {"layer_scale": 1e-5}, "layer_scale=1e-05"),
        ("vit_ti16", {"qk_norm": True}, "qk_norm=True"),
        ("vit_r_ti16", {"pool": "map"}, "pool='map'"),
        ("coatnet_nano1", {"image_size": 32}, "no CoAtNet"),
        ("resnet_nano1", {"image_size": 32}, "no ResNet"),
    ],
)
def test_what_google_has_no_model_for(arch, options, said):
    size = TINY if arch.startswith("vit") else {}
    with pytest.raises(InputError, match=re.escape(said)) as raised:
        convert_state(build_model(arch, **size, **options), "google")
    assert "layout 'google'" in str(raised.value)


def test_a_missing_tensor_is_named_as_in_the_file(tmp_path):
    ours = build_model("vit_ti16", **VIT)
    state = convert_state(ours, "google")
    del state["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/bias"]
    with pytest.raises(InputError, match="Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/bias"):
        load_weights(ours, state)

import math
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.reference_libraries import reference
from vitlight.errors import InputError
from vitlight.models import ViT, ViTConfig, build_config, build_model
from vitlight.models.vit import PatchEmbed, sincos2d

TINY = ViTConfig(32, 2, 2, 64, patch_size=4, image_size=16, num_classes=10)


def build(arch: str, **overrides: object) -> ViT:
    with torch.device("meta"):
        model = build_model(arch, **overrides)
    assert isinstance(model, ViT)
    return model


def count(model: ViT) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arch", "overrides", "millions", "source"),
    [
        ("vit_ti16", {}, 5.8, "AugReg T1, with a slightly larger head"),
        ("vit_s16", {}, 22.2, "AugReg T1"),
        ("vit_m16", {}, 38.8, "DeiT III"),
        ("vit_b16", {}, 86.6, "DeiT III"),
        ("vit_l16", {}, 304.4, "DeiT III"),
        ("vit_h14", {}, 632, "ViT T1"),
        ("vit_so400m14", {"pool": "map"}, 428, "SoViT T1"),
        ("vit_giant14", {"pool": "gap"}, 1011, "Scaling ViT T2"),
        ("vit_gigantic14", {"pool": "gap"}, 1843, "Scaling ViT T2"),
        ("vit_gigantic14", {"pool": "map"}, 1882, "SoViT T1"),
        ("vit_e14", {"pool": "map"}, 3900, "PaLI"),
        ("vit_xs28", {}, 5.4, "Scaling ViT T2, ViT-s/28"),
        ("vit_xs16", {}, 5.0, "Scaling ViT T2, ViT-s/16"),
    ],
)
def test_published_sizes(arch: str, overrides: dict[str, object], millions: float, source: str) -> None:
    tolerance = 0.05 if "_xs" in arch else 0.015
    assert count(build(arch, **overrides)) / 1e6 == pytest.approx(millions, rel=tolerance), source


def test_plain_vit_s16_has_the_reproductions_count() -> None:
    # EIFY/mup-vit, arXiv 2205.01580 with a linear head: GAP, fixed sine-cosine positions, no class token.
    assert count(build("vit_s16", pool="gap", posemb="sincos2d")) == 21_974_632
    assert count(build("vit_s16", pool="gap", posemb="sincos2d", representation_layer=True)) == 21_974_632 + 385 * 384


def test_initialisation_follows_big_vision() -> None:
    torch.manual_seed(0)
    model = build_model("vit_ti16", 10, 64, pool="map", class_token=True, num_registers=2, representation_layer=True)
    assert isinstance(model, ViT)
    lecun = math.sqrt(1 / (3 * 16 * 16))
    assert model.patch_embed.weight.std().item() == pytest.approx(lecun, rel=0.02)
    assert model.patch_embed.weight.abs().max().item() == pytest.approx(2 * lecun / 0.87963, rel=0.01)
    assert model.representation.weight.std().item() == pytest.approx(192**-0.5, rel=0.02)
    assert model.posemb.std().item() == pytest.approx(192**-0.5, rel=0.05)
    assert model.registers.std().item() == pytest.approx(1e-6, rel=0.1)
    assert not model.class_token.any()
    assert not model.head.weight.any()
    square = math.sqrt(6 / (192 + 192))
    pool = model.attention_pool
    matrices = [*model.blocks[0].attn.qkv.weight.chunk(3), model.blocks[0].attn.proj.weight]
    for matrix in (*matrices, pool.q.weight, *pool.kv.weight.chunk(2), pool.proj.weight):
        assert matrix.abs().max().item() == pytest.approx(square, rel=0.01)
    assert pool.probe.abs().max().item() == pytest.approx(math.sqrt(6 / (192 + 1)), rel=0.05)
    for mlp in (model.blocks[0].mlp, pool.mlp):
        assert mlp.fc1.weight.abs().max().item() == pytest.approx(math.sqrt(6 / (192 + 768)), rel=0.01)
        assert mlp.fc1.bias.std().item() == pytest.approx(1e-6, rel=0.1)


def test_sincos2d_by_hand() -> None:
    # Token 5 of a 3 x 3 grid stands at x = 2, y = 1; width 8 has frequencies 1 and 1e-4.
    row = sincos2d(3, 8)[0, 5]
    angles = [2, 2e-4]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    expected += [math.sin(a / 2) for a in angles] + [math.cos(a / 2) for a in angles]
    assert row.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("pool", ["cls", "gap", "map"])
@pytest.mark.parametrize("posemb", ["learned", "sincos2d"])
def test_pools_and_position_embeddings(pool: str, posemb: str) -> None:
    torch.manual_seed(0)
    model = build_model("vit_nano1", 10, 28, pool=pool, posemb=posemb, representation_layer=True, dropout_rate=0.1)
    assert isinstance(model, ViT)
    torch.nn.init.normal_(model.head.weight)
    images = torch.randn(2, 3, 28, 28)
    assert model.features(images).shape == (2, 49 + (pool == "cls"), 32)
    model(images).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert ("posemb" in model.state_dict()) == (posemb == "learned")


def test_without_positions_the_order_of_patches_does_not_matter() -> None:
    torch.manual_seed(0)
    model = build_model("vit_nano1", 10, 28).eval()
    torch.nn.init.normal_(model.head.weight)
    images = torch.randn(2, 3, 28, 28)
    rolled = images.roll(4, dims=-1)  # by one patch
    with torch.no_grad():
        assert (model(images) - model(rolled)).abs().max() > 1e-3
        model.posemb.zero_()
        torch.testing.assert_close(model(images), model(rolled), rtol=1e-4, atol=1e-5)


def test_patch_embedding_is_a_convolution() -> None:
    torch.manual_seed(0)
    embed = PatchEmbed(3, 8, 4).double()
    images = torch.randn(2, 3, 12, 20, dtype=torch.float64)
    expected = nn.Conv2d.forward(embed, images).flatten(2).mT
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(embed(images.contiguous(memory_format=layout)), expected)


def test_config_is_hashable_and_says_its_grid() -> None:
    config = ViTConfig(192, 12, 3, 768, patch_size=14)
    assert config.grid == 16
    assert len({config, ViTConfig(192, 12, 3, 768, patch_size=14)}) == 1


EVERYTHING = {"layer_scale": 0.1, "qk_norm": True, "num_registers": 3, "gelu": "tanh"}


def tiny(**overrides: Any) -> ViT:
    """A ViT of two blocks in float64, every parameter away from its initial value."""
    torch.manual_seed(0)
    return randomize(ViT(ViTConfig(**vars(TINY) | overrides)).double())


def randomize(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.2)
    return model


def gradients(model: ViT, images: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(images).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("overrides", [{}, {"norm_position": "after_pool"}, EVERYTHING, {"depth": 1}])
def test_the_last_block_for_the_class_token_alone_changes_nothing(overrides: dict[str, Any]) -> None:
    model = tiny(**overrides)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    seen: list[int] = []
    model.blocks[-1].mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    full, full_gradients = model.eval()(images), gradients(model, images)
    saved, saved_gradients = model.train()(images), gradients(model, images)
    torch.testing.assert_close(saved, full, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(saved_gradients, full_gradients, rtol=1e-10, atol=1e-10)
    num_tokens = 17 + overrides.get("num_registers", 0)
    assert seen == [num_tokens, num_tokens, 1, 1]
    assert model.features(images).shape[1] == num_tokens


@pytest.mark.parametrize("pool", ["cls", "gap", "map"])
def test_activation_checkpointing_changes_no_gradient(pool: str) -> None:
    model = tiny(pool=pool, **EVERYTHING)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    calls: list[int] = []
    model.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    plain = gradients(model, images)
    assert len(calls) == 1
    model.activation_checkpointing = True
    torch.testing.assert_close(gradients(model, images), plain, rtol=0, atol=0)
    assert len(calls) == 3  # once more in the backward pass
    assert plain.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.any() for gradient in plain.values())


def test_norming_before_or_after_the_class_token_is_taken_is_the_same() -> None:
    before, after = tiny(), tiny(norm_position="after_pool")
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(after(images), before(images))
    torch.testing.assert_close(after.norm(after.features(images)), before.features(images))


def test_fp32_softmax_is_the_same_attention() -> None:
    images = torch.randn(2, 3, 16, 16)
    plain, upcast = tiny().float(), tiny(fp32_softmax=True).float()
    torch.testing.assert_close(upcast(images), plain(images), rtol=1e-5, atol=1e-5)


def test_no_position_embedding_sees_a_bag_of_patches() -> None:
    for pool in ("cls", "gap", "map"):
        model = tiny(posemb="none", pool=pool)
        assert not hasattr(model, "posemb")
        images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        torch.testing.assert_close(model(images.roll(4, dims=-1)), model(images))


# timm's name of a setting beside ours. Its positions cover the registers too, unless no_embed_class.
TIMM_OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"posemb_on_class_token": False}, {"no_embed_class": True}),
    ({"qk_norm": True, "layer_scale": 0.1}, {"qk_norm": True, "init_values": 0.1}),
    ({"num_registers": 3, "posemb_on_class_token": False}, {"reg_tokens": 3, "no_embed_class": True}),
    ({"pool": "gap", "class_token": True, "norm_position": "after_pool"}, {"global_pool": "avg", "fc_norm": True}),
    ({"pool": "gap"}, {"global_pool": "avg", "class_token": False, "fc_norm": False}),
    (
        {"pool": "gap", "posemb": "none"},
        {"global_pool": "avg", "class_token": False, "fc_norm": False, "pos_embed": ""},
    ),
    ({"pool": "map", "gelu": "tanh"}, {"global_pool": "map", "class_token": False, "act_layer": "gelu_tanh"}),
    (
        {"pool": "map", "num_registers": 2, "class_token": True, "posemb_on_class_token": False, "norm_eps": 1e-5},
        {"global_pool": "map", "reg_tokens": 2, "no_embed_class": True, "norm_layer": partial(nn.LayerNorm, eps=1e-5)},
    ),
]
# What our names are in timm, in the order in which they are put in place.
TIMM_NAMES = (
    (r"^(backbone\.(?=stages)|backbone\.)", "patch_embed.backbone."),
    (r"backbone\.stages\.(\d+)\.", r"backbone.stages.\1.blocks."),
    (r"shortcut_norm", "downsample.norm"),
    (r"shortcut", "downsample.conv"),
    (r"stem_norm", "stem.norm"),
    (r"stem\.weight", "stem.conv.weight"),
    (r"^patch_embed\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"^class_token", "cls_token"),
    (r"^registers", "reg_token"),
    (r"^posemb", "pos_embed"),
    (r"scale([12])$", r"ls\1.gamma"),
    (r"^attention_pool\.", "attn_pool."),
    (r"probe", "latent"),
)


def check_against_timm(ours: ViT, theirs: Any, image_size: int) -> None:
    """Gives `ours` the random weights of `theirs`; logits and the images' gradients must be the same, eval and train."""
    randomize(theirs)
    weights = theirs.state_dict()
    state = {}
    for name in ours.state_dict():
        timm_name = name
        for pattern, replacement in TIMM_NAMES:
            timm_name = re.sub(pattern, replacement, timm_name)
        if name.startswith("norm.") and timm_name not in weights:
            timm_name = f"fc_{name}"
        state[name] = weights.pop(timm_name if timm_name in weights else timm_name.replace("stem.", ""))
    assert not weights
    ours.load_state_dict(state)
    for training in (False, True):
        images = torch.randn(2, 3, image_size, image_size, requires_grad=True)
        logits = [model.train(training)(images) for model in (ours, theirs)]
        assert logits[1].std() > 0.1
        torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)
        gradients = [torch.autograd.grad(x.square().mean(), images)[0] for x in logits]
        assert gradients[1].abs().max() > 1e-3
        torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("ours", "theirs"), TIMM_OPTIONS)
def test_options_equal_those_of_timm(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = reference("timm.models.vision_transformer")
    shape = {"img_size": 16, "patch_size": 4, "num_classes": 10, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = ViT(ViTConfig(**vars(TINY) | {"mlp_dim": 128} | ours))
    check_against_timm(model, module.VisionTransformer(**shape, **theirs), 16)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"posemb": "rotary"}, "posemb='rotary' must be one of 'learned', 'sincos2d', 'none'"),
        ({"norm_position": "first"}, "norm_position='first' must be one of 'before_pool', 'after_pool'"),
        ({"gelu": "relu"}, "gelu='relu' must be one of 'exact', 'tanh'"),
        ({"class_token": "yes"}, "class_token='yes' must be true, false or null"),
        ({"class_token": False}, "class_token=False leaves pool='cls' nothing to pool; use pool='gap' or 'map'"),
        ({"qk_norm": "false"}, "qk_norm='false' must be true or false"),
        ({"posemb_on_class_token": None}, "posemb_on_class_token=None must be true or false"),
        ({"fp32_softmax": "no"}, "fp32_softmax='no' must be true or false"),
        ({"representation_layer": 384}, "representation_layer=384 must be true or false"),
        ({"num_registers": -1}, "num_registers=-1 must be a whole number of at least 0"),
        ({"num_registers": 1.5}, "num_registers=1.5 must be a whole number of at least 0"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 must be a finite number above 0"),
        ({"layer_scale": 0}, "layer_scale=0 must be a finite number above 0"),
        ({"layer_scale": "1e-5"}, "layer_scale='1e-5' must be a finite number above 0"),
        ({"backbone": "r50"}, "backbone='r50' must be a HybridStem or None"),
        ({"posemb": "sincos2d", "width": 390}, "posemb='sincos2d' needs a width that is a multiple of 4, not 390"),
    ],
)
def test_bad_options_are_refused_in_one_line(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        build_config("vit_s16", **overrides)
    assert str(error.value) == message

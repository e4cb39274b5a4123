import math

import pytest
import torch

from vitlight.models import ViT, ViTConfig, build_model
from vitlight.models.vit import sincos2d


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
    model = build_model("vit_ti16", 10, 64)
    assert isinstance(model, ViT)
    assert model.patch_embed.weight.std().item() == pytest.approx(math.sqrt(1 / (3 * 16 * 16)), rel=0.02)
    assert model.posemb.std().item() == pytest.approx(192**-0.5, rel=0.05)
    assert not model.class_token.any()
    assert not model.head.weight.any()
    qkv = model.blocks[0].attn.qkv.weight
    assert qkv.abs().max().item() == pytest.approx(math.sqrt(3 / 192), rel=0.01)


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


def test_config_is_hashable_and_says_its_grid() -> None:
    config = ViTConfig(192, 12, 3, 768, patch_size=14)
    assert config.grid == 16
    assert len({config, ViTConfig(192, 12, 3, 768, patch_size=14)}) == 1

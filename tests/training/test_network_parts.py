import pytest
import torch

from tests.reference_libraries import reference
from vitlight.errors import InputError
from vitlight.models import build_model
from vitlight.training.network_parts import classifier_layers, layer_depths, set_head_bias

TINY = ["timm:test_efficientnet", "timm:test_convnext", "timm:test_nfnet"]


@pytest.mark.parametrize("arch", ["vit_nano1", "coatnet_nano1", "resnet_nano1", "bit_r50x1", *TINY])
def test_the_head_bias_is_what_every_logit_starts_at(arch):
    if arch in TINY:
        reference("timm")
    model = build_model(arch, num_classes=10, image_size=32)
    (head,) = classifier_layers(model)
    assert head.weight.shape[:2] == (10, head.weight.shape[1])
    torch.nn.init.zeros_(head.weight)
    set_head_bias(model, -6.9)
    assert torch.equal(model.eval()(torch.randn(2, 3, 32, 32)), torch.full((2, 10), -6.9))


def test_heads_of_a_distilled_model_and_heads_with_a_hidden_layer():
    reference("timm")
    with torch.device("meta"):
        distilled = build_model("timm:deit_tiny_distilled_patch16_224", 10, 224)
        hidden = build_model("timm:caformer_s18", 10, 224)
    assert classifier_layers(distilled) == [distilled.network.head, distilled.network.head_dist]
    assert classifier_layers(hidden) == [hidden.network.head.fc.fc2]


def test_a_head_without_bias_has_none_to_set():
    model = build_model("vit_nano1", num_classes=10, image_size=32)
    model.head.bias = None
    with pytest.raises(InputError, match=r"model\.head_bias_init=-10\.0: the classifier .* has no bias"):
        set_head_bias(model, -10.0)


def depths_of(arch: str, **options: object) -> dict[str, int]:
    model = build_model(arch, num_classes=10, image_size=32, **options)
    depths = layer_depths(model)
    assert set(depths) == {name for name, _ in model.named_parameters()}
    return depths


def test_depths_of_a_vit():
    options = {"depth": 2, "pool": "map", "representation_layer": True, "num_registers": 2, "posemb": "learned"}
    depths = depths_of("vit_nano1", **options)
    assert {depths[name] for name in ("posemb", "registers", "patch_embed.weight")} == {0}
    assert [{at for name, at in depths.items() if name.startswith(f"blocks.{i}.")} for i in (0, 1)] == [{1}, {2}]
    after = ("norm.", "attention_pool.", "representation.", "head.")
    assert {at for name, at in depths.items() if name.startswith(after)} == {3}


def test_depths_of_a_hybrid_have_its_backbone_first():
    depths = depths_of("vit_r_ti16", depth=2, width=32, num_heads=2, mlp_dim=64)
    assert {at for name, at in depths.items() if name.startswith("backbone.")} == {0}
    assert max(depths.values()) == 3


@pytest.mark.parametrize(
    ("arch", "blocks", "head"),
    [
        ("coatnet_nano3", ["stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1", "stages.2.0", "stages.2.1"], 7),
        ("resnet_nano3", ["stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1"], 5),
        ("bit_r50x1", [f"stages.{i}.{j}" for i, depth in enumerate((3, 4, 6, 3)) for j in range(depth)], 17),
    ],
)
def test_depths_of_networks_in_stages(arch, blocks, head):
    depths = depths_of(arch)
    assert {at for name, at in depths.items() if name.startswith("stem.")} == {0}
    found = [{at for name, at in depths.items() if name.startswith(f"{block}.")} for block in blocks]
    assert found == [{at} for at in range(1, len(blocks) + 1)]
    assert depths["head.weight"] == depths["head.bias"] == head == len(blocks) + 1
    assert not [
        name for name, at in depths.items() if at == head and not name.startswith(("norm.", "hidden.", "head."))
    ]


def test_a_model_of_timm_without_layers_says_so(monkeypatch):
    reference("timm")
    model = build_model("timm:test_nfnet", 10, 32)
    monkeypatch.setattr(type(model.network), "group_matcher", None)
    with pytest.raises(InputError, match=r"model\.optimizer\.layer_decay needs .* those of test_nfnet; leave it out"):
        layer_depths(model)

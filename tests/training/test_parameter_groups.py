import pytest
import torch
from torch import nn

from tests.reference_libraries import reference
from vitlight.models import build_model
from vitlight.training.parameter_groups import parameter_groups


def names_in(group: dict, model: nn.Module) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


@pytest.mark.parametrize("arch", ["vit_nano1", "coatnet_nano1", "resnet_nano1"])
def test_groups_hold_every_parameter_once_and_decay_only_kernels(arch):
    model = build_model(arch, num_classes=10, image_size=32)
    decayed, others = parameter_groups(model, 0.1)
    ids = [id(p) for group in (decayed, others) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(
        "bias" in name
        or "norm" in name.lower()
        or "pos" in name
        or "token" in name
        or dict(model.named_parameters())[name].ndim == 1
        for name in names_in(others, model)
    )


def test_all_decays_all():
    model = build_model("vit_nano1", num_classes=10, image_size=32)
    (group,) = parameter_groups(model, 0.1, decay="all")
    assert names_in(group, model) == {name for name, _ in model.named_parameters()}
    assert group["weight_decay"] == 0.1


@pytest.mark.parametrize("decay", ["kernels", "all"])
def test_the_head_may_decay_otherwise(decay):
    model = build_model("vit_nano1", num_classes=10, image_size=32)
    groups = parameter_groups(model, 0.03, head_weight_decay=3.0, decay=decay)
    (head,) = [group for group in groups if group["weight_decay"] == 3.0]
    assert names_in(head, model) == {"head.weight"} | ({"head.bias"} if decay == "all" else set())
    (decayed,) = [group for group in groups if group["weight_decay"] == 0.03]
    assert ("head.bias" in names_in(decayed, model)) is False
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out():
    model = build_model("vit_nano1", num_classes=10, image_size=32)
    model.patch_embed.requires_grad_(False)
    names = set().union(*(names_in(group, model) for group in parameter_groups(model, 0.1, layer_decay=0.5)))
    assert names == {name for name, _ in model.named_parameters() if not name.startswith("patch_embed")}


def rate_of(model: nn.Module, layer_decay: float) -> dict[str, float]:
    groups = parameter_groups(model, 0.1, layer_decay=layer_decay)
    return {name: group["lr_scale"] for group in groups for name in names_in(group, model)}


def test_rates_fall_layer_by_layer_from_the_head_down():
    model = build_model("vit_nano1", num_classes=10, image_size=32, depth=3, posemb="learned")
    rates = rate_of(model, 0.5)
    expected = {"posemb": 1 / 16, "patch_embed.weight": 1 / 16, "blocks.0.attn.qkv.bias": 1 / 8}
    expected |= {"blocks.1.mlp.fc1.weight": 1 / 4, "blocks.2.norm1.weight": 1 / 2, "norm.bias": 1, "head.weight": 1}
    assert {name: rates[name] for name in expected} == expected


def test_rates_are_those_of_timms_vit_but_for_the_last_norm():
    """timm counts the last norm to the last block; BEiT, which the numbering is from, to the head."""
    timm = reference("timm")
    with torch.device("meta"):
        theirs = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=10)
        ours = build_model("vit_ti16", num_classes=10, image_size=224, depth=3)
    groups = reference("timm.optim").param_groups_layer_decay(theirs, 0.1, layer_decay=0.75)
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    expected = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    found = rate_of(ours, 0.75)
    for prefix in ("patch_embed", "blocks.0", "blocks.1", "blocks.2", "head"):
        assert {rate for name, rate in found.items() if name.startswith(prefix)} == {
            rate for name, rate in expected.items() if name.startswith(prefix)
        }
    assert (found["norm.weight"], expected["norm.weight"]) == (1.0, 0.75)


def test_layers_that_timm_names_are_taken_from_it():
    reference("timm")
    model = build_model("timm:test_convnext", 10, 32)
    groups = reference("timm.optim").param_groups_layer_decay(model.network, 0.1, layer_decay=0.5)
    expected = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    found = {
        id(p): group["lr_scale"] for group in parameter_groups(model, 0.1, layer_decay=0.5) for p in group["params"]
    }
    assert found == expected
    assert len(set(found.values())) > 3


def test_the_meta_device_groups_alike():
    with torch.device("meta"):
        model = build_model("coatnet_nano1", num_classes=10, image_size=32)
    assert set(rate_of(model, 0.5)) == {name for name, _ in model.named_parameters()}

import copy

import pytest
import torch
from torch import nn

from vitlight.models import build_model
from vitlight.training.optim import AdamW, parameter_groups


@pytest.mark.parametrize("arch", ["vit_nano1", "coatnet_nano1", "resnet_nano1"])
def test_groups_hold_every_parameter_once_and_decay_only_kernels(arch):
    model = build_model(arch, num_classes=10, image_size=32)
    decayed, others = parameter_groups(model, 0.1)
    ids = [id(p) for group in (decayed, others) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decayed["params"])
    names = {id(p): name for name, p in model.named_parameters()}
    undecayed = {names[id(p)] for p in others["params"]}
    assert all(
        "bias" in n
        or "norm" in n.lower()
        or "pos" in n
        or "cls" in n
        or "token" in n
        or dict(model.named_parameters())[n].ndim == 1
        for n in undecayed
    )


def test_decay_is_multiplied_by_the_learning_rate():
    layer = nn.Linear(3, 3)
    before = layer.weight.detach().clone()
    optimizer = AdamW(lr=0.01, weight_decay=0.5).build(layer)
    layer.weight.grad, layer.bias.grad = torch.zeros(3, 3), torch.zeros(3)
    optimizer.step()
    assert torch.allclose(layer.weight, before * (1 - 0.01 * 0.5))


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        # The head starts at zero, and a zero gradient of what lies before it would prove nothing.
        model(images).sub(torch.arange(4.0)).square().mean().backward()
        optimizer.step()


def plain_adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-3, foreach=False)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
@pytest.mark.parametrize("arch", ["coatnet_nano1", "resnet_nano1"])
def test_the_fused_optimizer_steps_as_the_plain_one(arch, memory_format):
    models = [build_model(arch, num_classes=4, image_size=32).double().to(memory_format=memory_format) for _ in "ab"]
    models[1].load_state_dict(models[0].state_dict())
    fused, plain = AdamW(lr=1e-3, weight_decay=0.1).build(models[0]), plain_adamw(models[1])
    assert all(group["fused"] for group in fused.param_groups)
    for model, optimizer in zip(models, (fused, plain), strict=True):
        torch.set_default_dtype(torch.float64)
        try:
            take_steps(model, optimizer, range(3))
        finally:
            torch.set_default_dtype(torch.float32)
    for (name, left), right in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("saved_by", ["fused", "plain"])
def test_state_saved_by_any_kernel_in_any_memory_format_is_taken_up(saved_by):
    build = AdamW(lr=1e-3, weight_decay=0.1).build if saved_by == "fused" else plain_adamw
    first = build_model("resnet_nano1", num_classes=4, image_size=32)
    optimizer = build(first)
    take_steps(first, optimizer, range(2))
    second = build_model("resnet_nano1", num_classes=4, image_size=32)
    second.load_state_dict(first.state_dict())
    second.to(memory_format=torch.channels_last)
    resumed = AdamW(lr=1e-3, weight_decay=0.1).build(second)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(group["fused"] for group in resumed.param_groups)
    before = {name: weight.detach().clone() for name, weight in first.named_parameters()}
    for model, each in ((first, optimizer), (second, resumed)):
        torch.manual_seed(0)
        for weight in model.parameters():
            weight.grad = torch.empty_like(weight).copy_(torch.randn(weight.shape))
        each.step()
    for (name, left), right in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7, msg=name)
        assert (left - before[name]).abs().max() > 1e-4


def test_what_no_fused_kernel_can_step_gets_the_plain_one():
    with torch.device("meta"):
        layer = nn.Linear(3, 3)
    (group, _) = AdamW().build(layer).param_groups
    assert not group["fused"]

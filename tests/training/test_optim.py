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

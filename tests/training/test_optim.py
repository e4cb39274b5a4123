import copy
import io

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from vitlight.errors import InputError
from vitlight.models import build_model
from vitlight.training.clipping import clip_adaptively
from vitlight.training.optim import Optimizer
from vitlight.training.parameter_groups import parameter_groups


def test_decay_is_multiplied_by_the_learning_rate():
    layer = nn.Linear(3, 3)
    before = layer.weight.detach().clone()
    optimizer = Optimizer(lr=0.01, weight_decay=0.5).build(layer)
    layer.weight.grad, layer.bias.grad = torch.zeros(3, 3), torch.zeros(3)
    optimizer.step()
    assert torch.allclose(layer.weight, before * (1 - 0.01 * 0.5))


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        logits = model(images.to(next(model.parameters()).dtype))
        # The head starts at zero, and a zero gradient of what lies before it would prove nothing.
        logits.sub(torch.arange(logits.shape[1])).square().mean().backward()
        optimizer.step()


def take_random_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """With gradients that don't depend on the weights: where true ones are zero but for rounding, as those of the biases of
    keys, an optimizer that divides by their size would make much of the rounding."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for weight in model.parameters():
            weight.grad = 0.1**step * torch.randn(weight.shape, generator=generator).to(weight.dtype)
        optimizer.step()


def plain_adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-3, foreach=False)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
@pytest.mark.parametrize("arch", ["coatnet_nano1", "resnet_nano1"])
def test_the_fused_optimizer_steps_as_the_plain_one(arch, memory_format):
    models = [build_model(arch, num_classes=4, image_size=32).double().to(memory_format=memory_format) for _ in "ab"]
    models[1].load_state_dict(models[0].state_dict())
    fused, plain = Optimizer(lr=1e-3, weight_decay=0.1).build(models[0]), plain_adamw(models[1])
    assert all(group["fused"] for group in fused.param_groups)
    for model, optimizer in zip(models, (fused, plain), strict=True):
        take_steps(model, optimizer, range(3))
    for (name, left), right in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("saved_by", ["fused", "plain"])
def test_state_saved_by_any_kernel_in_any_memory_format_is_taken_up(saved_by):
    build = Optimizer(lr=1e-3, weight_decay=0.1).build if saved_by == "fused" else plain_adamw
    first = build_model("resnet_nano1", num_classes=4, image_size=32)
    optimizer = build(first)
    take_steps(first, optimizer, range(2))
    second = build_model("resnet_nano1", num_classes=4, image_size=32)
    second.load_state_dict(first.state_dict())
    second.to(memory_format=torch.channels_last)
    resumed = Optimizer(lr=1e-3, weight_decay=0.1).build(second)
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
    (group, _) = Optimizer().build(layer).param_groups
    assert not group["fused"]


SETTINGS = {
    "adamw": {},
    "adamw, bfloat16": {"momentum_dtype": "bfloat16"},
    "sgd": {"name": "sgd", "nesterov": True},
    "sgd, bfloat16": {"name": "sgd", "momentum_dtype": "bfloat16"},
    "lamb": {"name": "lamb"},
    "adafactor": {"name": "adafactor"},
    "adafactor, bfloat16": {"name": "adafactor", "momentum_dtype": "bfloat16"},
    "layer decay": {"layer_decay": 0.5, "head_weight_decay": 3.0},
}


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
@pytest.mark.parametrize("name", SETTINGS)
def test_loaded_state_is_saved_state_and_goes_on_bit_by_bit(name, memory_format):
    """Through a file, as a checkpoint is."""
    settings = Optimizer(lr=1e-3, weight_decay=0.1, **SETTINGS[name])
    whole = build_model("resnet_nano1", num_classes=40, image_size=32).to(memory_format=memory_format)
    optimizer = settings.build(whole)
    take_steps(whole, optimizer, range(2))
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = build_model("resnet_nano1", num_classes=40, image_size=32).to(memory_format=memory_format)
    resumed.load_state_dict(saved["model"])
    other = settings.build(resumed)
    other.load_state_dict(saved["optimizer"])
    for (left, state), (right, loaded) in zip(optimizer.state.items(), other.state.items(), strict=True):
        assert left.shape == right.shape
        assert state.keys() == loaded.keys()
        for key, value in state.items():
            assert (value.dtype, value.stride()) == (loaded[key].dtype, loaded[key].stride()), key
            assert torch.equal(value, loaded[key])
    half = {value.dtype for state in other.state.values() for value in state.values()} - {torch.float32}
    assert half == ({torch.bfloat16} if "bfloat16" in name else set())
    for model, each in ((whole, optimizer), (resumed, other)):
        take_steps(model, each, range(2, 4))
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)
    assert [group.get("lr_scale") for group in other.param_groups] == [
        group.get("lr_scale") for group in optimizer.param_groups
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"betas": (0.9, 0.999), "eps": 1e-8, "fused": True}),
        ({"beta2": 0.95, "eps": 0.0}, {"betas": (0.9, 0.95), "eps": 0.0}),
        ({"name": "sgd"}, {"momentum": 0.9, "nesterov": False, "dampening": 0, "fused": True}),
        ({"name": "sgd", "momentum": 0.0}, {"momentum": 0.0}),
        ({"name": "lamb"}, {"betas": (0.9, 0.999), "eps": 1e-6}),
        ({"name": "adafactor"}, {"beta1": 0.9, "beta2": 0.999, "eps": 1e-30}),
    ],
)
def test_null_settings_are_the_optimizers_own(settings, expected):
    groups = Optimizer(lr=0.2, weight_decay=0.1, **settings).build(nn.Linear(3, 3)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    for group in groups:
        assert {name: group[name] for name in (*expected, "lr")} == {**expected, "lr": 0.2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adam"}, r"model\.optimizer\.name=adam is not one of adamw, sgd, lamb, adafactor"),
        ({"decay": "some"}, r"model\.optimizer\.decay=some is not one of kernels, all"),
        ({"momentum_dtype": "float16"}, r"momentum_dtype=float16 is not one of float32, bfloat16"),
        ({"momentum": 0.9}, r"momentum=0\.9 is not read by model\.optimizer\.name=adamw; set it to null"),
        ({"name": "lamb", "momentum_dtype": "bfloat16"}, r"momentum_dtype=bfloat16 is not read by .*lamb; .* float32"),
        ({"name": "sgd", "beta1": 0.9}, r"beta1=0\.9 is not read by model\.optimizer\.name=sgd"),
        ({"name": "sgd", "eps": 1e-8}, r"eps=1e-08 is not read by model\.optimizer\.name=sgd"),
        ({"name": "adafactor", "nesterov": True}, r"nesterov=True is not read by .*adafactor; set it to false"),
        (
            {"name": "sgd", "nesterov": True, "momentum": 0.0},
            r"nesterov=true needs a model\.optimizer\.momentum above 0",
        ),
        ({"name": "sgd", "momentum": 1.0}, r"momentum=1\.0 is not in \[0, 1\)"),
        ({"head_weight_decay": -1.0}, r"head_weight_decay=-1\.0 is not a finite number from 0 up"),
        ({"layer_decay": 0.0}, r"layer_decay=0\.0 is not in \(0, 1\]"),
        ({"adaptive_clip": 0.0}, r"adaptive_clip=0\.0 is not a finite number above 0"),
    ],
)
def test_settings_that_are_wrong_or_not_read_are_refused(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        Optimizer(**settings)
    assert "\n" not in str(caught.value)


@pytest.fixture
def one_rank():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", [*SETTINGS, "adaptive clip"])
def test_sharded_weights_take_the_same_steps(name, one_rank):
    """One rank has every kind of sharded tensor already, and what torch can't do with them it refuses."""
    settings = Optimizer(lr=1e-3, weight_decay=0.1, **SETTINGS.get(name, {"adaptive_clip": 0.01}))
    whole = build_model("vit_nano1", num_classes=40, image_size=32)
    sharded = copy.deepcopy(whole)
    for block in (*sharded.blocks, sharded):
        fully_shard(block, mesh=one_rank)
    for model in (whole, sharded):
        optimizer = settings.build(model)
        for step in range(2):
            optimizer.zero_grad()
            images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
            (1 + model(images)).square().mean().backward()
            if settings.adaptive_clip is not None:
                clip_adaptively(model, settings.adaptive_clip)
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    for (key, left), right in zip(whole.named_parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(right.full_tensor(), left, rtol=1e-5, atol=1e-6, msg=key)

"""The memory estimate against what torch's allocator hands out, and the laws it must follow."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from vitlight.cost import count_params
from vitlight.cost.memory import Precision, estimate_memory, largest_batch
from vitlight.errors import InputError
from vitlight.models import build_model, set_activation_checkpointing


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int, precision: str, keep_gradients: bool
) -> None:
    images, labels = torch.randn(batch_size, 3, 32, 32), torch.zeros(batch_size, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = F.cross_entropy(model(images).float(), labels)
    loss.backward()
    optimizer.step()
    if not keep_gradients:
        optimizer.zero_grad()


def measured_peak(
    arch: str, batch_size: int, precision: str, checkpointing: bool, keep_gradients: bool = False, **options: object
) -> int:
    """Bytes that tensors hold at once, at most, during a second step; the profiler sees every block of the allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = build_model(arch, image_size=32, **options).train()
        set_activation_checkpointing(model, checkpointing)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        step(model, optimizer, batch_size, precision, keep_gradients)
        with record_function("second step"):
            step(model, optimizer, batch_size, precision, keep_gradients)
    events = profiler.profiler.kineto_results.events()
    (start,) = (event.start_ns() for event in events if event.name() == "second step")
    blocks = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = itertools.accumulate(num_bytes for _, num_bytes in blocks)
    return max(total for total, (time, _) in zip(held, blocks, strict=True) if time >= start)


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
@pytest.mark.parametrize(
    ("arch", "checkpointing", "options"),
    [
        ("vit_nano2", False, {}),
        ("vit_nano2", True, {"drop_path_rate": 0.4}),
        ("coatnet_nano1", False, {}),
        ("coatnet_nano1", True, {}),
        ("resnet_nano2", False, {}),
        ("resnet_nano2", True, {}),
    ],
)
def test_estimate_is_what_is_measured(
    arch: str, checkpointing: bool, options: dict[str, float], precision: Precision
) -> None:
    model = build_model(arch, image_size=32, **options)
    estimate = estimate_memory(model, 32, 64, precision, activation_checkpointing=checkpointing)
    assert estimate.peak_bytes == pytest.approx(measured_peak(arch, 64, precision, checkpointing, **options), rel=0.15)


@pytest.mark.parametrize(
    ("arch", "tolerance"), [("vit_nano2", 0.02), ("resnet_nano2", 0.1)]
)  # of scratch in a convolution
def test_gradients_that_stay_add_to_the_peak_of_the_forward_pass(arch: str, tolerance: float) -> None:
    """With few images a step the peak is parameters, moments and, where they are kept, gradients."""
    model = build_model(arch, image_size=32)
    kept, dropped = (estimate_memory(model, 32, 2, keep_gradients=keep) for keep in (True, False))
    for estimate, keep in ((kept, True), (dropped, False)):
        assert estimate.peak_bytes == pytest.approx(measured_peak(arch, 2, "32", False, keep), rel=tolerance)
    assert kept.gradients == dropped.gradients
    assert kept.peak_bytes - dropped.peak_bytes > 0.2 * kept.gradients


def test_standing_parts() -> None:
    model = build_model("resnet_nano1", image_size=32).eval()
    params = count_params(model)
    single = estimate_memory(model, 32, 8)
    assert single.params == pytest.approx(4 * params, rel=0.01)  # and what blocks of 64 bytes round up to
    assert single.gradients == single.params
    assert single.optimizer_state == 2 * single.params
    assert single.input == pytest.approx(8 * 3 * 32 * 32 * 4, rel=0.01)
    assert 0 < single.buffers < 0.05 * single.params
    assert estimate_memory(model, 32, 8, optimizer="sgd").optimizer_state == single.params
    assert estimate_memory(model, 32, 8, "bf16-true").params == pytest.approx(2 * params, rel=0.01)
    model.head.requires_grad_(False)
    assert estimate_memory(model, 32, 8).gradients == pytest.approx(4 * (params - 81 * 1000), rel=0.01)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("arch", ["vit_nano1", "coatnet_nano1", "resnet_nano1"])
def test_activations_grow_with_the_batch_and_checkpointing_lessens_them(arch: str, device_type: str) -> None:
    model = build_model(arch, image_size=32)
    small, large, checkpointed, half = (
        estimate_memory(model, 32, batch_size, precision, "adamw", checkpointing, device_type).activations
        for batch_size, precision, checkpointing in (
            *((32, "32", False), (64, "32", False), (64, "32", True), (64, "bf16-mixed", False)),
        )
    )
    assert large == pytest.approx(2 * small, rel=0.05)
    assert checkpointed < 0.6 * large
    assert half < 0.85 * large
    with_drop_path = build_model(arch, image_size=32, drop_path_rate=0.7)
    assert estimate_memory(with_drop_path, 32, 64, device_type=device_type).activations < 0.95 * large


def test_on_a_gpu_norms_run_in_float32_under_autocast_and_attention_keeps_no_weights() -> None:
    sizes = {
        (arch, device): estimate_memory(arch, image_size, 8, "bf16-mixed", device_type=device).activations
        for arch, image_size in (("bit_r50x1", 96), ("coatnet_nano4", 64))
        for device in ("cpu", "cuda")
    }
    assert sizes["bit_r50x1", "cuda"] > 1.2 * sizes["bit_r50x1", "cpu"]
    assert sizes["coatnet_nano4", "cuda"] < sizes["coatnet_nano4", "cpu"]


def test_the_model_is_left_alone_and_may_be_anywhere() -> None:
    model = build_model("coatnet_nano1", image_size=32).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    estimate = estimate_memory(model, 32, 8, activation_checkpointing=True)
    assert not model.training
    assert not model.activation_checkpointing
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert estimate_memory(model.to("meta"), 32, 8, activation_checkpointing=True) == estimate


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_largest_batch(device_type: str) -> None:
    limit = 6 * 2**20
    largest = largest_batch("resnet_nano1", 32, limit, "bf16-mixed", device_type=device_type)
    fitting, too_large = (
        estimate_memory("resnet_nano1", 32, size, "bf16-mixed", device_type=device_type).peak_bytes
        for size in (largest, largest + 1)
    )
    assert fitting <= limit < too_large
    assert largest_batch("resnet_nano1", 32, 2**20, device_type=device_type) == 0
    one, two = (estimate_memory("vit_nano1", 32, size, device_type=device_type).peak_bytes for size in (1, 2))
    assert one < two
    assert largest_batch("vit_nano1", 32, one, device_type=device_type) == 1


def test_batch_norm_of_one_value_a_channel() -> None:
    with pytest.raises(InputError, match="batch_size=1 at image_size=8 leaves a batch norm one value a channel"):
        estimate_memory("resnet_nano1", 8, 1)
    limit = estimate_memory("resnet_nano1", 8, 2).peak_bytes
    assert largest_batch("resnet_nano1", 8, limit) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "8"}, "precision='8' is not one of 32, "),
        ({"optimizer": "lamb"}, "optimizer='lamb' is not one of adamw, sgd"),
        ({"device_type": "tpu"}, "device_type='tpu' is not one of cpu, cuda"),
        ({"batch_size": 0}, "batch_size=0 is not a whole number from 1 to 2147483647"),
        ({"batch_size": 1.5}, "batch_size=1.5 is not a whole number"),
        ({"batch_size": True}, "batch_size=True is not a whole number"),
        ({"batch_size": 10**23}, "batch_size=1000+ is not a whole number"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        estimate_memory("vit_nano1", 32, **({"batch_size": 8} | settings))
    with pytest.raises(InputError, match="activation_checkpointing=True: Sequential is not a model of build_model"):
        estimate_memory(nn.Sequential(nn.Flatten(), nn.Linear(3072, 9)), 32, 8, activation_checkpointing=True)

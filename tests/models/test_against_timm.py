"""Our models beside timm's of the same name, with the same random weights, moved by `load_weights(layout="timm")`.

Every tensor is random, those that start at zero or one and the statistics of batch norm included, and scaled so that
logits are of the order of 1. Differences of logits are absolute, those of a gradient relative to the largest entry of
its tensor, in float32 unless said otherwise.
"""

import gc
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn

from tests.reference_libraries import reference
from vitlight.models import build_model
from vitlight.models.coatnet import TIMM_OPTIONS
from vitlight.models.layouts import LAYOUTS
from vitlight.models.weights import convert_state, load_weights


@dataclass(frozen=True)
class Pair:
    """One model, as timm and as we name it."""

    theirs: str
    ours: str
    image_size: int = 224
    their_options: dict[str, Any] = field(default_factory=dict)
    our_options: dict[str, Any] = field(default_factory=dict)

    def timm_model(self) -> nn.Module:
        model = reference("timm").create_model(self.theirs, **self.their_options)
        randomise(model)
        return model

    def our_model(self) -> nn.Module:
        return build_model(self.ours, image_size=self.image_size, **self.our_options)


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Kernels of variance 1 / fan_in, scales near 1, variances in [1, 2], the rest of standard deviation 0.1."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        normal = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else None
        if normal is None:
            tensor.fill_(7)
        elif name.endswith("running_var"):
            tensor.uniform_(1, 2, generator=generator)
        elif tensor.ndim >= 2 and name.endswith("weight"):
            tensor.copy_(normal / math.sqrt(tensor[0].numel()))
        elif name.endswith(("weight", "gamma")):
            tensor.copy_(1 + 0.1 * normal)
        else:
            # Sharp attention: the gradient of a table that hardly matters is rounding.
            tensor.copy_((2 if name.endswith("bias_table") else 0.1) * normal)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            # Far from ReLU's kink. At it, rounding decides the side and the gradient jumps: timm's own BiT in float32 is
            # 1 to 20 % of a tensor's largest entry from its own gradient in float64.
            module.bias.copy_(3 * torch.randn(module.bias.shape, generator=generator).sign())


def step(model: nn.Module, images: Tensor) -> Tensor:
    """Logits; the gradients of one number that depends on all of them stay in the model."""
    logits = model(images)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits * weights).sum().backward()
    return logits.detach()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: cast(Tensor, parameter.grad) for name, parameter in model.named_parameters()}


# In exact arithmetic these change nothing: a bias of all keys, and in training a bias that the next batch norm, past a
# 1x1 convolution, takes off again.
WITHOUT_GRADIENT = ("k_norm.bias", "norm1.bias")


class Differences(NamedTuple):
    """The largest of each kind, of gradients and of statistics relative to the largest entry of their tensor."""

    logits: float
    gradient: float
    gradient_of: str
    statistics: float


def differences(
    pair: Pair, train: bool = False, batch_size: int = 1, dtype: torch.dtype = torch.float32
) -> Differences:
    """Loads timm's weights into our model, checks the round trip to the bit, and runs both on the same images."""
    torch.manual_seed(0)
    images = torch.randn(batch_size, 3, pair.image_size, pair.image_size, dtype=dtype)
    theirs, ours = pair.timm_model().to(dtype).train(train), pair.our_model().to(dtype).train(train)
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    report = load_weights(ours, before, layout="timm")
    assert report.num_params == sum(parameter.numel() for parameter in theirs.parameters())
    after = convert_state(ours, "timm")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    del before, after

    expected, logits = step(theirs, images), step(ours, images)
    assert 0.1 < expected.std() < 10
    got, found = dict(ours.state_dict()) | gradients(ours), dict(theirs.state_dict()) | gradients(theirs)
    largest = max(gradient.abs().max() for gradient in gradients(theirs).values())
    worst, statistics = (0.0, ""), 0.0
    parameters = dict(ours.named_parameters())
    for entry in LAYOUTS["timm"].entries(ours):
        [name] = entry.ours
        [wanted] = entry.to_ours([found[each] for each in entry.theirs])
        if name in parameters and max(got[name].abs().max(), wanted.abs().max()) < 1e-6 * largest:
            assert name.endswith(WITHOUT_GRADIENT)
            continue
        difference = ((got[name] - wanted).abs().max() / wanted.abs().max()).item()
        assert math.isfinite(difference), name
        if name in parameters:
            worst = max(worst, (difference, name))
        else:
            statistics = max(statistics, difference)
    return Differences((logits - expected).abs().max().item(), *worst, statistics)


def check(pair: Pair, train: bool = False) -> None:
    found = differences(pair, train)
    assert found.logits < 1e-4
    assert found.gradient < 1e-4, found.gradient_of


def check_with_batch_statistics(pair: Pair) -> None:
    """In float64: batch norm makes some gradients small differences of large numbers."""
    found = differences(pair, train=True, batch_size=2, dtype=torch.float64)
    assert found.logits < 1e-5  # ours are float32 always
    assert found.gradient < 1e-8, found.gradient_of
    assert found.statistics < 1e-8


@pytest.fixture(autouse=True)
def free_memory() -> Any:
    yield
    gc.collect()


VITS = [("tiny", "ti"), ("small", "s"), ("base", "b"), ("large", "l")]


@pytest.mark.parametrize("image_size", [224, 384])
@pytest.mark.parametrize(("theirs", "ours"), VITS)
def test_vit_that_reads_the_class_token(theirs: str, ours: str, image_size: int) -> None:
    # In training the last block computes the class token alone; with nothing dropped the numbers are the same.
    check(Pair(f"vit_{theirs}_patch16_{image_size}", f"vit_{ours}16", image_size), train=image_size == 224)


@pytest.mark.parametrize("image_size", [224, 384])
@pytest.mark.parametrize(("theirs", "ours"), VITS)
def test_vit_that_averages_its_patches(theirs: str, ours: str, image_size: int) -> None:
    options = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    check(Pair(f"vit_{theirs}_patch16_{image_size}", f"vit_{ours}16", image_size, options, {"pool": "gap"}))


@pytest.mark.parametrize(
    ("theirs", "ours", "image_size"), [*((*size, 224) for size in VITS), *((*size, 384) for size in VITS[:2])]
)
def test_vit_that_averages_as_timm_does_by_default(theirs: str, ours: str, image_size: int) -> None:
    options = {"pool": "gap", "class_token": True, "norm_position": "after_pool"}
    check(Pair(f"vit_{theirs}_patch16_{image_size}", f"vit_{ours}16", image_size, {"global_pool": "avg"}, options))


SHALLOW = {"depth": 2}
EPS = {"backbone_norm_eps": 1e-5}


@pytest.mark.parametrize(
    "pair",
    [
        Pair(
            *("vit_tiny_patch16_224", "vit_ti16", 224),
            SHALLOW
            | {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1, "qk_norm": True, "global_pool": "map"},
            SHALLOW
            | {"num_registers": 4, "posemb_on_class_token": False, "layer_scale": 0.1, "qk_norm": True}
            | {"pool": "map", "class_token": True},
        ),
        Pair(
            *("vit_tiny_patch16_224", "vit_ti16", 224),
            SHALLOW | {"pos_embed": "none", "act_layer": "gelu_tanh", "global_pool": "map", "class_token": False},
            SHALLOW | {"posemb": "none", "gelu": "tanh", "pool": "map"},
        ),
        Pair(
            *("deit3_small_patch16_224", "vit_s16", 224, SHALLOW),
            SHALLOW | {"layer_scale": 1e-6, "posemb_on_class_token": False},
        ),
        Pair("vit_tiny_r_s16_p8_224", "vit_r_ti16", 224, SHALLOW, SHALLOW | EPS),
        Pair("vit_small_r26_s32_224", "vit_r26_s32", 224, SHALLOW, SHALLOW | EPS),
        Pair("vit_base_r50_s16_224", "vit_r50_b16", 224, SHALLOW | {"num_classes": 1000}, SHALLOW | EPS),
    ],
    ids=["registers", "tanh", "deit3", "r+ti", "r26+s", "r50+b"],
)
def test_vit_options_and_hybrids(pair: Pair) -> None:
    check(pair)


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_resnet(depth: int) -> None:
    check(Pair(f"resnet{depth}", f"resnet{depth}", 128))


def test_resnet_in_training() -> None:
    check_with_batch_statistics(Pair("resnet50", "resnet50", 128))


@pytest.mark.parametrize(("size", "image_size"), [("50x1", 128), ("101x3", 64)])
def test_bit(size: str, image_size: int) -> None:
    check(Pair(f"resnetv2_{size}_bit", f"bit_r{size}", image_size, our_options={"weight_eps": 1e-8}))


@pytest.mark.parametrize("size", range(4))
def test_coatnet(size: int) -> None:
    check(Pair(f"coatnet_{size}_224", f"coatnet_{size}", our_options=TIMM_OPTIONS))


def test_coatnet_in_training() -> None:
    check_with_batch_statistics(Pair("coatnet_0_224", "coatnet_0", our_options=TIMM_OPTIONS))


@pytest.mark.parametrize(
    ("their_options", "our_options"),
    [
        (
            {"conv_stride_mode": "1x1", "conv_pool_type": "max2", "transformer_pool_type": "max2"}
            | {"stem_bias": True, "conv_attn_act_layer": "gelu"},
            {"norm_position": "after_pool"},
        ),
        ({"transformer_rel_pos_type": ""}, TIMM_OPTIONS | {"relative_attention": False}),
        (
            {"conv_norm_layer": "layernorm2d", "conv_norm_eps": 1e-6, "transformer_dim_head": 64},
            TIMM_OPTIONS | {"conv_norm": "layer", "head_dim": 64},
        ),
    ],
    ids=["as in the paper", "no relative attention", "layer norm"],
)
def test_coatnet_options(their_options: dict[str, Any], our_options: dict[str, Any]) -> None:
    shape = {"embed_dim": (16, 32, 64, 128), "depths": (2, 1, 2, 1), "stem_width": 16, "head_hidden_size": 128}
    ours = {"widths": (16, 16, 32, 64, 128), "depths": (2, 2, 1, 2, 1)}
    if our_options.get("shortcut_projection", "always") == "always":
        shape["embed_dim"], ours["widths"] = (24, 32, 64, 128), (16, 24, 32, 64, 128)
    check(Pair("coatnet_0_224", "coatnet_0", 224, shape | their_options, ours | our_options))


@pytest.mark.parametrize(
    "pair",
    [
        Pair("vit_tiny_patch16_224", "vit_ti16", 384),
        Pair("vit_small_patch16_224", "vit_s16", 384),
        Pair("vit_small_patch16_224", "vit_s16", 160),
        Pair(
            *("vit_small_patch16_224", "vit_s16", 384, {"global_pool": "avg"}),
            {"pool": "gap", "class_token": True, "norm_position": "after_pool"},
        ),
        Pair("deit3_small_patch16_224", "vit_s16", 384, {}, {"layer_scale": 1e-6, "posemb_on_class_token": False}),
        Pair("vit_tiny_r_s16_p8_224", "vit_r_ti16", 384, {}, EPS),
    ],
    ids=["ti", "s", "smaller", "gap", "deit3", "r+ti"],
)
@torch.no_grad()
def test_weights_of_another_resolution_are_resampled_as_timm_does(pair: Pair) -> None:
    """timm's model of the new size reads a file of 224 px through its own filter, which resamples; ours reads it too."""
    state = pair.timm_model().state_dict()
    theirs = reference("timm").create_model(pair.theirs, img_size=pair.image_size, **pair.their_options).eval()
    filtered = reference("timm.models.vision_transformer").checkpoint_filter_fn(dict(state), theirs)
    theirs.load_state_dict(filtered)
    ours = pair.our_model().eval()
    report = load_weights(ours, state)
    assert report.resized.keys() == {"posemb"}
    torch.manual_seed(0)
    images = torch.randn(2, 3, pair.image_size, pair.image_size)
    expected = theirs(images)
    assert 0.1 < expected.std() < 10
    assert (ours(images) - expected).abs().max() < 1e-4

"""Google's JAX checkpoints (.npz): ViT and hybrids as google-research/vision_transformer publishes them, BiT as
google-research/big_transfer does, and under the names of google-research/big_vision what only that project has.

Kernels are (in, out) or (H, W, in, out); attention kernels keep the heads apart: (D, heads, head_dim) for query, key and
value, (heads, head_dim, D) for the output. The files say nothing of the activation and the epsilon of the norms: the JAX
models have the tanh form of GELU (`gelu="tanh"`) and 1e-6.
"""

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vitlight.errors import InputError
from vitlight.models.bit import BiT
from vitlight.models.layouts.entry import Entry, mapped, same
from vitlight.models.vit import ViT
from vitlight.models.vit_config import ViTConfig

__all__ = ["NAME", "canonical", "entries", "recognises"]

NAME = "google"


class _Spelling(NamedTuple):
    """How a project names what several of them have; the numbers count the submodules of an encoder block."""

    prefix: str
    posemb: str
    attention: int
    norm2: int
    mlp: int


_VISION_TRANSFORMER = _Spelling("", "Transformer/posembed_input/pos_embedding", 1, 2, 3)
_BIG_VISION = _Spelling("params/", "pos_embedding", 0, 1, 0)

# A training state, big_vision's image-text models, its image models. What lies outside the prefix is not the model.
_PREFIXES = ("opt/target/", "params/img/", "params/")
_STACKED = "Transformer/encoderblock/"


def recognises(names: Collection[str]) -> bool:
    """Whether these names are those of a ViT, hybrid or BiT of Google's."""
    return any("Transformer/encoderblock" in name or "standardized_conv2d/" in name for name in names)


def canonical(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`tensors` under the names that `entries(model)` uses, whichever of Google's projects and versions wrote them."""
    prefix = next((prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in tensors)), "")
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not isinstance(model, ViT):
        return state
    spelling = _spelling(model.config)
    return {spelling.prefix + _respelled(name, spelling): tensor for name, tensor in _apart(state)}


def _apart(state: dict[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    """Blocks that big_vision's scan stacked along a new first dimension, one by one; old group norms as vectors."""
    for name, tensor in state.items():
        if name.startswith(_STACKED):
            for i, each in enumerate(tensor.unbind()):
                yield f"Transformer/encoderblock_{i}/{name.removeprefix(_STACKED)}", each
        elif re.search(r"(^|/)gn\w+/(scale|bias)$", name):
            yield name, tensor.flatten()
        else:
            yield name, tensor


def _respelled(name: str, spelling: _Spelling) -> str:
    """Any project's name, without a prefix, in that spelling."""
    if re.fullmatch(r"(Transformer/)?(posembed_input/)?pos_embedding", name):
        return spelling.posemb
    block = re.fullmatch(r"(Transformer/encoderblock_\d+)/(\w+)_(\d)/(.+)", name)
    if block is None:
        return name
    path, module, count, leaf = block.groups()
    counts = {"MultiHeadDotProductAttention": spelling.attention, "MlpBlock": spelling.mlp}
    if module == "LayerNorm" and count != "0":
        counts[module] = spelling.norm2
    return f"{path}/{module}_{counts.get(module, count)}/{leaf}"


def entries(model: nn.Module) -> list[Entry]:
    """Every tensor of `model` and its names there. Raises InputError where Google's projects have no such model."""
    if isinstance(model, BiT):
        return _bit(model)
    if isinstance(model, ViT):
        return _vit(model)
    raise InputError(f"layout 'google' has ViT, hybrid and BiT models, and no {type(model).__name__}")


def _spelling(config: ViTConfig) -> _Spelling:
    """vision_transformer's names, or big_vision's for the models that only it has."""
    learned_for_patches_only = config.posemb == "learned" and config.pool == "cls" and not config.posemb_on_class_token
    only_big_vision = config.pool == "map" or config.posemb == "sincos2d" or learned_for_patches_only
    return _BIG_VISION if only_big_vision else _VISION_TRANSFORMER


def _check(config: ViTConfig) -> None:
    refused = {
        "class_token": config.has_class_token and config.pool != "cls",
        "num_registers": config.num_registers > 0,
        "norm_position": config.norm_position != "before_pool" and config.pool != "cls",
        "layer_scale": config.layer_scale is not None,
        "qk_norm": config.qk_norm,
        "backbone": config.backbone is not None and _spelling(config) is _BIG_VISION,
    }
    for option, is_refused in refused.items():
        if is_refused:
            beside = f" with pool={config.pool!r}, posemb={config.posemb!r}" if option == "backbone" else ""
            value = getattr(config, option)
            raise InputError(f"layout 'google' has no {option}={value!r}{beside}; use another layout or leave it out")


def _vit(model: ViT) -> list[Entry]:
    config = model.config
    _check(config)
    spelling = _spelling(config)
    p = spelling.prefix
    found = [*_conv("patch_embed", f"{p}embedding"), same("patch_embed.bias", f"{p}embedding/bias")]
    if config.pool == "cls":
        found.append(same("class_token", f"{p}cls"))
    if config.posemb == "learned":
        found.append(same("posemb", p + spelling.posemb))
    if config.backbone is not None:
        found += _backbone(model.backbone)
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"{p}Transformer/encoderblock_{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_{spelling.attention}"
        found += _norm(f"{ours}.norm1", f"{theirs}/LayerNorm_0")
        found += _heads(f"{ours}.attn.qkv", attention, ("query", "key", "value"), config.num_heads)
        found += _heads_out(f"{ours}.attn.proj", f"{attention}/out", config.num_heads)
        found += _norm(f"{ours}.norm2", f"{theirs}/LayerNorm_{spelling.norm2}")
        found += _mlp(f"{ours}.mlp", f"{theirs}/MlpBlock_{spelling.mlp}")
    found += _norm("norm", f"{p}Transformer/encoder_norm")
    if config.pool == "map":
        ours, theirs = "attention_pool", f"{p}MAPHead_0"
        attention = f"{theirs}/MultiHeadDotProductAttention_0"
        found.append(same(f"{ours}.probe", f"{theirs}/probe"))
        found += _heads(f"{ours}.q", attention, ("query",), config.num_heads)
        found += _heads(f"{ours}.kv", attention, ("key", "value"), config.num_heads)
        found += _heads_out(f"{ours}.proj", f"{attention}/out", config.num_heads)
        found += _norm(f"{ours}.norm", f"{theirs}/LayerNorm_0")
        found += _mlp(f"{ours}.mlp", f"{theirs}/MlpBlock_0")
    if config.representation_layer:
        found += _linear("representation", f"{p}pre_logits")
    return found + _linear("head", f"{p}head")


def _backbone(backbone: nn.Module) -> list[Entry]:
    """The ResNet of a hybrid: conv_root, gn_root, block1/unit1/conv1 and so on."""
    found = [*_conv("backbone.stem", "conv_root"), *_norm("backbone.stem_norm", "gn_root")]
    for s, stage in enumerate(cast(Iterable[Iterable[nn.Module]], backbone.stages)):
        for b, block in enumerate(stage):
            ours, theirs = f"backbone.stages.{s}.{b}", f"block{s + 1}/unit{b + 1}"
            for k in (1, 2, 3):
                found += _conv(f"{ours}.conv{k}", f"{theirs}/conv{k}")
                found += _norm(f"{ours}.norm{k}", f"{theirs}/gn{k}")
            if getattr(block, "shortcut", None) is not None:
                found += _conv(f"{ours}.shortcut", f"{theirs}/conv_proj")
                found += _norm(f"{ours}.shortcut_norm", f"{theirs}/gn_proj")
    return found


def _bit(model: BiT) -> list[Entry]:
    conv = "standardized_conv2d"
    found = _conv("stem.0", f"resnet/root_block/{conv}")
    for s, stage in enumerate(cast(Iterable[Iterable[nn.Module]], model.stages)):
        for b, block in enumerate(stage):
            ours, theirs = f"stages.{s}.{b}", f"resnet/block{s + 1}/unit{b + 1:02d}"
            for k, letter in enumerate("abc", start=1):
                found += _norm(f"{ours}.norm{k}", f"{theirs}/{letter}/group_norm", "gamma", "beta")
                found += _conv(f"{ours}.conv{k}", f"{theirs}/{letter}/{conv}")
            if getattr(block, "shortcut", None) is not None:
                found += _conv(f"{ours}.shortcut", f"{theirs}/a/proj/{conv}")
    found += _norm("norm", "resnet/group_norm", "gamma", "beta")
    kernel = mapped("head.weight", "resnet/head/conv2d/kernel", lambda k: k[0, 0].t(), lambda w: w.t()[None, None])
    return [*found, kernel, same("head.bias", "resnet/head/conv2d/bias")]


def _norm(ours: str, theirs: str, scale: str = "scale", bias: str = "bias") -> list[Entry]:
    return [same(f"{ours}.weight", f"{theirs}/{scale}"), same(f"{ours}.bias", f"{theirs}/{bias}")]


def _linear(ours: str, theirs: str) -> list[Entry]:
    return [mapped(f"{ours}.weight", f"{theirs}/kernel", torch.t, torch.t), same(f"{ours}.bias", f"{theirs}/bias")]


def _mlp(ours: str, theirs: str) -> list[Entry]:
    return [*_linear(f"{ours}.fc1", f"{theirs}/Dense_0"), *_linear(f"{ours}.fc2", f"{theirs}/Dense_1")]


def _conv(ours: str, theirs: str) -> list[Entry]:
    """The kernel alone: (H, W, in, out) there, (out, in, H, W) here."""
    return [
        mapped(f"{ours}.weight", f"{theirs}/kernel", lambda k: k.permute(3, 2, 0, 1), lambda w: w.permute(2, 3, 1, 0))
    ]


def _heads(ours: str, theirs: str, names: tuple[str, ...], num_heads: int) -> list[Entry]:
    """Projections to heads: kernels (D, heads, head_dim) and biases (heads, head_dim), stacked by rows here."""
    weight = Entry(
        (f"{ours}.weight",),
        tuple(f"{theirs}/{name}/kernel" for name in names),
        lambda kernels: [torch.cat([kernel.flatten(1).t() for kernel in kernels])],
        lambda weights: [each.t().unflatten(1, (num_heads, -1)) for each in weights[0].chunk(len(names))],
    )
    bias = Entry(
        (f"{ours}.bias",),
        tuple(f"{theirs}/{name}/bias" for name in names),
        lambda biases: [torch.cat([each.flatten() for each in biases])],
        lambda biases: [each.unflatten(0, (num_heads, -1)) for each in biases[0].chunk(len(names))],
    )
    return [weight, bias]


def _heads_out(ours: str, theirs: str, num_heads: int) -> list[Entry]:
    """The projection of all heads back to the width: (heads, head_dim, D) there, (D, D) here."""
    weight = mapped(
        f"{ours}.weight",
        f"{theirs}/kernel",
        lambda kernel: kernel.flatten(0, 1).t(),
        lambda weight: weight.t().unflatten(0, (num_heads, -1)),
    )
    return [weight, same(f"{ours}.bias", f"{theirs}/bias")]

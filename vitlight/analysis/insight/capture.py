"""Reads attention weights off a network that computes them in fused kernels, which never write them down.

While images run through the network as they always do, hooks see what enters each attention module and compute softmax of
its logits a second time, for the layers and heads that are asked for. Nothing of the network changes, neither its weights
nor its outputs.

Shape letters: B images, H heads, Q queries, K keys, N tokens, D width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitlight.errors import InputError
from vitlight.models.coatnet import CoAtNet
from vitlight.models.coatnet_blocks import TransformerBlock
from vitlight.models.layers import Attention
from vitlight.models.vit import AttentionPool, ViT

__all__ = [
    "MAX_BYTES",
    "AttentionLayer",
    "AttentionReader",
    "Readout",
    "attention_layers",
    "capture_attention",
    "choose_layers",
    "plain_network",
    "still",
]

Readout = Literal["class token", "mean over patches", "pooling head"]
MAX_BYTES = 64 << 20
_MOST_IMAGES = 32  # at once, whatever the weights take

_TIMM_ATTENTION = ("timm.layers.attention", "timm.models.vision_transformer")


@dataclass(frozen=True)
class AttentionLayer:
    """One attention module of a network. `index` counts them in the order they run; `name` is the module's path.

    grid: rows and columns of its patches. stride: pixels of the image between the centres of neighbouring patches.
    num_prefix: tokens that stand before the patches.
    """

    index: int
    name: str
    num_heads: int
    grid: tuple[int, int]
    stride: int
    num_prefix: int

    @property
    def num_tokens(self) -> int:
        return self.num_prefix + self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class AttentionReader:
    """The attention of a network, and how its output is pooled from the last layer's tokens.

    pool: the attention pooling module where `readout` is "pooling head"; it looks at the patches, or with
    `pool_sees_prefix` at all tokens.
    """

    layers: tuple[AttentionLayer, ...]
    modules: tuple[nn.Module, ...]
    readout: Readout
    pool: nn.Module | None = None
    pool_sees_prefix: bool = False


def attention_layers(network: nn.Module) -> AttentionReader:
    """The self-attention modules of a network of `build_model`; no layers where it has none that can be read.

    Read are ViTs and hybrids, CoAtNets, and of timm the models that are its VisionTransformer (vit_*, deit_*, ...).
    """
    network = plain_network(network)
    found = [(name, module) for name, module in network.named_modules() if _is_attention(module)]
    inner = _inner(network)
    if isinstance(network, ViT):
        config = network.config
        layers = [
            AttentionLayer(
                i, name, config.num_heads, (config.grid, config.grid), config.stride, config.num_prefix_tokens
            )
            for i, (name, _) in enumerate(found)
        ]
        pool = network.attention_pool if config.pool == "map" else None
        readout: Readout = "class token" if config.pool == "cls" else "pooling head" if pool else "mean over patches"
        return AttentionReader(tuple(layers), tuple(module for _, module in found), readout, pool)
    if type(inner).__name__ == "VisionTransformer":
        return _read_timm(inner, found)
    if not isinstance(network, CoAtNet):
        return AttentionReader((), (), "mean over patches")
    blocks = [
        (f"stages.{i}.{j}.attn", block, math.prod(network.config.strides[: i + 2]))  # the stem is stage 0 of the config
        for i, stage in enumerate(network.stages)
        for j, block in enumerate(cast(nn.ModuleList, stage))
        if isinstance(block, TransformerBlock)
    ]
    layers = [
        AttentionLayer(i, name, block.attn.num_heads, (block.grid, block.grid), stride, 0)
        for i, (name, block, stride) in enumerate(blocks)
    ]
    return AttentionReader(tuple(layers), tuple(block.attn for _, block, _ in blocks), "mean over patches")


def _read_timm(inner: Any, found: list[tuple[str, nn.Module]]) -> AttentionReader:
    rows, columns = inner.patch_embed.grid_size
    stride = inner.patch_embed.patch_size[0]
    layers = [
        AttentionLayer(i, name, cast(Any, module).num_heads, (rows, columns), stride, inner.num_prefix_tokens)
        for i, (name, module) in enumerate(found)
    ]
    pool = getattr(inner, "attn_pool", None)
    if pool is not None and (pool.latent_len != 1 or pool.pos_embed is not None):
        pool = None
    readout: Readout = (
        "pooling head" if pool is not None else "class token" if inner.global_pool == "token" else "mean over patches"
    )
    return AttentionReader(tuple(layers), tuple(module for _, module in found), readout, pool, pool_sees_prefix=True)


def _inner(network: nn.Module) -> nn.Module:
    """timm's own module inside ours."""
    inner = getattr(network, "network", None)
    return inner if isinstance(inner, nn.Module) else network


def _is_attention(module: nn.Module) -> bool:
    """Whether it is plain self-attention: ours, or timm's of that very kind."""
    if isinstance(module, Attention):
        return True
    return type(module).__name__ == "Attention" and type(module).__module__ in _TIMM_ATTENTION


def choose_layers(reader: AttentionReader, chosen: Sequence[int] | None) -> tuple[int, ...]:
    """Indexes of layers, first to last; negative ones count from the last. None is all. InputError for one that isn't
    there."""
    count = len(reader.layers)
    if chosen is None:
        return tuple(range(count))
    if wrong := [index for index in chosen if not -count <= index < count]:
        raise InputError(f"--layers: {wrong[0]} is none of the {count} attention layers 0 to {count - 1}")
    return tuple(sorted({index % count for index in chosen}))


def capture_attention(
    network: nn.Module,
    images: Tensor,
    visit: Callable[[int, slice, Tensor], object],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    visit_pool: Callable[[slice, Tensor], object] | None = None,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Run images (B, C, H, W) through a network of `build_model`, and show `visit` the attention weights on the way.

    visit: called as (index, images, weights) for each asked layer of `attention_layers`, first to last, and each part of
    the batch: which images, and their weights (b, H, Q, K), float32, with the asked heads alone. It must copy what it
    keeps. visit_pool: the same for an attention pooling head: (b, H, 1, K) over the patches alone.

    Memory: beside what a forward pass of as many images takes, the logits and weights of one layer; images are taken in
    parts for which each of them is at most `max_bytes`, or one by one where a single image's are more. A compiled network
    runs uncompiled, and one that is training as in evaluation; afterwards it is as before. InputError for a layer or head
    that isn't there.
    """
    network = plain_network(network)
    reader = attention_layers(network)
    asked = choose_layers(reader, layers)
    chosen = [_choose_heads(heads, reader.layers[index].num_heads, index) for index in asked]
    largest = max(
        (4 * len(some) * reader.layers[index].num_tokens ** 2 for index, some in zip(asked, chosen, strict=True)),
        default=1,
    )
    part = max(1, min(max_bytes // largest, _MOST_IMAGES))
    place = slice(0, 0)

    def hook(index: int, some: tuple[int, ...]) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            bias = args[1] if len(args) > 1 else kwargs.get("bias")
            visit(index, place, self_attention(module, args[0], bias, some))

        return look

    def look_at_pool(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert visit_pool is not None
        weights = pool_attention(module, args[0])
        if reader.pool_sees_prefix:
            weights = weights[..., reader.layers[0].num_prefix :]
        visit_pool(place, weights)

    with still(network), torch.no_grad(), ExitStack() as stack:
        handles: list[RemovableHandle] = [
            reader.modules[index].register_forward_pre_hook(hook(index, some), with_kwargs=True)
            for index, some in zip(asked, chosen, strict=True)
        ]
        if visit_pool is not None and reader.pool is not None:
            handles.append(reader.pool.register_forward_pre_hook(look_at_pool))
        for handle in handles:
            stack.callback(handle.remove)
        for first in range(0, len(images), part):
            place = slice(first, min(first + part, len(images)))
            network(images[place])


def _choose_heads(heads: Sequence[int] | None, num_heads: int, layer: int) -> tuple[int, ...]:
    if heads is None:
        return tuple(range(num_heads))
    if wrong := [head for head in heads if not 0 <= head < num_heads]:
        raise InputError(f"--heads: {wrong[0]} is none of the heads 0 to {num_heads - 1} of attention layer {layer}")
    return tuple(sorted(set(heads)))


def self_attention(module: nn.Module, x: Tensor, bias: Tensor | None, heads: Sequence[int]) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) of some heads, (B, len(heads), N, N) float32, for tokens x (B, N, D).

    bias: (H, N, N) on the logits of all heads, or None.
    """
    attention = cast(Any, module)
    head_dim = attention.qkv.out_features // (3 * attention.num_heads)
    picked = torch.tensor(list(heads), device=x.device)
    rows = (picked[:, None] * head_dim + torch.arange(head_dim, device=x.device)).flatten()

    def project(part: int) -> Tensor:
        chosen = rows + part * attention.num_heads * head_dim
        offset = None if attention.qkv.bias is None else attention.qkv.bias[chosen]
        out = F.linear(x, attention.qkv.weight[chosen], offset)  # (B, N, heads * d)
        return out.unflatten(-1, (len(heads), head_dim)).transpose(1, 2)

    q, k = attention.q_norm(project(0)).float(), attention.k_norm(project(1)).float()  # (B, heads, N, d)
    logits = (q * head_dim**-0.5) @ k.mT
    if bias is not None:
        logits += bias[picked].float()
    return logits.softmax(-1)


def pool_attention(module: nn.Module, x: Tensor) -> Tensor:
    """Weights of attention pooling, (B, H, 1, N) float32: of its learned query over tokens x (B, N, D)."""
    pool = cast(Any, module)
    probe = pool.probe if isinstance(pool, AttentionPool) else pool.latent
    q = pool.q(probe).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)  # (1, H, 1, d)
    k = pool.kv(x).chunk(2, dim=-1)[0].unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)  # (B, H, N, d)
    if not isinstance(pool, AttentionPool):
        q, k = pool.q_norm(q), pool.k_norm(k)
    return ((q.float() * q.shape[-1] ** -0.5) @ k.float().mT).softmax(-1)


def plain_network(network: nn.Module) -> nn.Module:
    """The module that `torch.compile` was given, where that is what it returned."""
    original = getattr(network, "_orig_mod", None)
    return original if isinstance(original, nn.Module) else network


@contextmanager
def still(network: nn.Module) -> Iterator[None]:
    """In evaluation mode, uncompiled and without autocast inside; each module as it was before afterwards."""
    training = {module: module.training for module in network.modules()}
    compiled = {module: module._compiled_call_impl for module in network.modules() if module._compiled_call_impl}
    network.eval()
    for module in compiled:
        module._compiled_call_impl = None
    device = next(network.parameters()).device.type
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for module, was in training.items():
            module.training = was
        for module, call in compiled.items():
            module._compiled_call_impl = call

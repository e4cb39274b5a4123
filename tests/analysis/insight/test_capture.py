"""Attention weights read off fused networks: they are what the network computes with, and nothing of it changes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference_libraries import reference
from vitlight.analysis.insight import attention_distance, rollout
from vitlight.analysis.insight.capture import attention_layers, capture_attention, pool_attention, self_attention
from vitlight.errors import InputError
from vitlight.models import build_model
from vitlight.models.weights import load_weights

SMALL: dict[str, Any] = {"depth": 2, "width": 32, "num_heads": 2, "mlp_dim": 32, "num_classes": 5, "image_size": 32}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_ti8", {**SMALL, "num_registers": 2}),
    "gap": ("vit_ti8", {**SMALL, "pool": "gap", "qk_norm": True, "class_token": True}),
    "map": ("vit_ti8", {**SMALL, "pool": "map", "fp32_softmax": True}),
    "coatnet": ("coatnet_nano1", {"image_size": 28, "num_classes": 5}),
    "plain coatnet": ("coatnet_nano1", {"image_size": 28, "num_classes": 5, "relative_attention": False}),
}


def sharp_network(name: str) -> nn.Module:
    """Random weights that are large enough for attention to be far from uniform."""
    arch, options = NETWORKS[name]
    torch.manual_seed(0)
    network = build_model(arch, **options)
    with torch.no_grad():
        for key, weight in network.named_parameters():
            if "qkv.weight" in key or key.endswith(("bias_table", "attention_pool.q.weight")):
                weight.mul_(4).add_(0.3 * torch.randn_like(weight))
    return network.eval()


def images_for(network: Any, count: int = 3) -> Tensor:
    size = network.config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def read(network: nn.Module, images: Tensor, **options: Any) -> dict[int, Tensor]:
    """Weights by layer, of all images."""
    found: dict[int, list[Tensor]] = {}
    capture_attention(network, images, lambda layer, place, w: found.setdefault(layer, []).append(w.clone()), **options)
    return {layer: torch.cat(parts) for layer, parts in found.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_reproduce_what_the_fused_modules_give(name: str) -> None:
    network = sharp_network(name)
    reader = attention_layers(network)
    images = images_for(network)
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    handles = [m.register_forward_hook(lambda m, args, out: seen.update({m: (args[0], out)})) for m in reader.modules]
    if reader.pool is not None:
        handles.append(reader.pool.proj.register_forward_hook(lambda m, args, out: seen.update({m: (args[0], out)})))
    pooled: list[Tensor] = []
    weights = read(network, images, visit_pool=lambda place, w: pooled.append(w.clone()))
    for handle in handles:
        handle.remove()
    assert sorted(weights) == [0, 1]
    for layer, module in zip(reader.layers, reader.modules, strict=True):
        tokens, output = seen[module]
        found = weights[layer.index]
        assert found.shape == (3, layer.num_heads, layer.num_tokens, layer.num_tokens)
        v = module.qkv(tokens).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)[2]
        torch.testing.assert_close(module.proj((found @ v).transpose(1, 2).flatten(2)), output, rtol=1e-4, atol=1e-5)
        assert found.amax() > 3 / layer.num_tokens, "far from uniform, so that the comparison says something"
    if name == "map":
        assert reader.readout == "pooling head" and reader.pool is not None
        assert pooled[0].shape == (3, 2, 1, 16)


def test_pooling_weights_reproduce_the_pooled_values() -> None:
    network: Any = sharp_network("map")
    pool = network.attention_pool
    tokens = torch.randn(2, 16, 32)
    seen: list[Tensor] = []
    handle = pool.proj.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    pool(tokens)
    handle.remove()
    v = pool.kv(tokens).chunk(2, -1)[1].unflatten(-1, (2, -1)).transpose(1, 2)
    torch.testing.assert_close((pool_attention(pool, tokens) @ v).transpose(1, 2).flatten(1), seen[0])


@pytest.mark.parametrize("name", ["class token", "coatnet"])
@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_left_as_it_was(name: str, training: bool) -> None:
    network = sharp_network(name)
    images = images_for(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    logits = network(images)
    network.train(training)
    network.head.eval()  # a part that its owner has frozen
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = torch.get_rng_state()
        read(network, images)
        assert torch.equal(torch.get_rng_state(), state), "no random number is drawn"
    modes = {module.training for key, module in network.named_modules() if key != "head"}
    assert modes == {training} and not network.head.training
    assert not any(module._forward_pre_hooks for module in network.modules())
    network.eval()
    assert torch.equal(network(images), logits)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_compiled_networks_run_as_they_are_written() -> None:
    network = sharp_network("class token")
    images = images_for(network)
    plain = read(network, images)
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(graph)
        return graph.forward

    network.compile(backend=backend)
    compiled = network._compiled_call_impl
    found = read(network, images)
    assert not calls and network._compiled_call_impl is compiled
    wrapped = read(torch.compile(sharp_network("class token"), backend=backend), images)
    assert not calls
    for layer, weights in plain.items():
        assert torch.equal(found[layer], weights) and torch.equal(wrapped[layer], weights)


def test_only_what_is_asked_for_is_recomputed() -> None:
    network = sharp_network("class token")
    images = images_for(network)
    plain = read(network, images)
    found = read(network, images, layers=[-1], heads=[1])
    assert list(found) == [1]
    torch.testing.assert_close(found[1], plain[1][:, 1:2])


def test_parts_of_a_batch_stay_within_the_bound() -> None:
    network = sharp_network("coatnet")
    images = images_for(network, 7)
    whole = read(network, images)
    sizes: list[int] = []
    places: list[slice] = []

    def visit(layer: int, place: slice, weights: Tensor) -> None:
        sizes.append(weights.nbytes)
        places.append(place)
        torch.testing.assert_close(weights, whole[layer][place])

    bound = 2 * whole[0][0].nbytes + 1  # the largest layer's of two images
    capture_attention(network, images, visit, max_bytes=bound)
    assert max(sizes) <= bound
    assert [place.stop - place.start for place in places[::2]] == [2, 2, 2, 1]
    capture_attention(network, images[:2], visit, max_bytes=1)  # less than one image's: one by one
    assert [place.start for place in places[-4::2]] == [0, 1]


def test_layers_and_heads_that_are_not_there_are_named() -> None:
    network = sharp_network("class token")
    images = images_for(network)
    with pytest.raises(InputError, match=r"--layers: 2 is none of the 2 attention layers 0 to 1"):
        read(network, images, layers=[0, 2])
    with pytest.raises(InputError, match=r"--heads: 7 is none of the heads 0 to 1 of attention layer 0"):
        read(network, images, heads=[7])


def test_a_network_without_attention_has_no_layers() -> None:
    assert attention_layers(build_model("resnet_nano1", image_size=28)).layers == ()


def test_layers_know_their_place_in_the_image() -> None:
    layers = attention_layers(build_model("coatnet_nano1", image_size=28)).layers
    assert [(layer.grid, layer.stride, layer.name) for layer in layers] == [
        ((7, 7), 4, "stages.1.0.attn"),
        ((4, 4), 8, "stages.2.0.attn"),
    ]
    with torch.device("meta"):
        layers = attention_layers(build_model("vit_r50_b16")).layers
    assert len(layers) == 12
    assert (layers[0].grid, layers[0].stride, layers[0].num_prefix) == ((14, 14), 16, 1)


def reference_weights(theirs: Any, images: Tensor) -> list[Tensor]:
    """timm's own softmax, written out: what goes into its dropout of attention weights."""
    seen: list[Tensor] = []
    handles = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_pre_hook(lambda m, args: seen.append(args[0])))
    with torch.no_grad():
        theirs(images)
    for handle in handles:
        handle.remove()
    return seen


def test_distance_and_rollout_equal_timms_unfused_vit() -> None:
    """Ours, timm's by name, and a reference written here, with the same weights."""
    timm = reference("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=7).eval()
    with torch.no_grad():
        for key, weight in theirs.named_parameters():
            if "qkv.weight" in key:
                weight.mul_(6)
            if key == "head.weight":
                weight.normal_()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    expected = reference_weights(theirs, images)
    places = torch.stack(torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij"), -1).view(-1, 2)
    apart = 16 * (places[:, None] - places[None]).square().sum(-1).sqrt()
    product = torch.eye(197)
    for weights in expected:
        product = (0.5 * weights.mean(1) + 0.5 * torch.eye(197)) @ product

    ours = build_model("vit_ti16", num_classes=7)
    load_weights(ours, theirs.state_dict(), "timm")
    by_name = build_model("timm:vit_tiny_patch16_224", num_classes=7)
    by_name.network.load_state_dict(theirs.state_dict())
    for network in (ours, by_name):
        reader = attention_layers(network)
        assert reader.readout == "class token"
        weights = read(network, images)
        assert len(weights) == 12
        for layer in reader.layers:
            patches = expected[layer.index][:, :, 1:, 1:]
            wanted = (patches / patches.sum(-1, keepdim=True) * apart).sum(-1).mean(-1)
            found = attention_distance(weights[layer.index], layer.grid, layer.stride, layer.num_prefix)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
        spread = [float(attention_distance(w, (14, 14), 16, 1).std()) for w in weights.values()]
        assert max(spread) > 1, "heads differ, so that the comparison says something"
        torch.testing.assert_close(rollout(list(weights.values())), product, rtol=0, atol=1e-5)


def test_self_attention_adds_biases_of_the_picked_heads() -> None:
    network: Any = sharp_network("coatnet")
    attention = network.stages[1][0].attn
    tokens, bias = torch.randn(1, 4, 24), torch.randn(attention.num_heads, 4, 4)
    q, k, _ = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    expected = F.softmax(q @ k.mT / q.shape[-1] ** 0.5 + bias, -1)
    torch.testing.assert_close(self_attention(attention, tokens, bias, [1]), expected[:, 1:2])

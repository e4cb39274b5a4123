"""All that is looked at in one network, as tensors: what `write_insight` then draws and lists.

Shape letters: B images, M shown images, H heads, h w grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitlight.analysis.insight.attention import Fusion, Rollout, attention_distance, attention_entropy
from vitlight.analysis.insight.biases import RelativeBias, relative_biases
from vitlight.analysis.insight.capture import (
    AttentionLayer,
    Readout,
    attention_layers,
    capture_attention,
    choose_layers,
)
from vitlight.analysis.insight.filters import Filters, first_filters, principal_components
from vitlight.analysis.insight.positions import position_embedding, position_similarity
from vitlight.analysis.insight.receptive_field import ReceptiveField, effective_receptive_fields, stages
from vitlight.errors import InputError

__all__ = ["NEEDS_IMAGES", "NUM_SHOWN", "SECTIONS", "AttentionStudy", "Insight", "LayerStudy", "inspect_network"]

SECTIONS = ("attention", "filters", "positions", "biases", "receptive_field")
NEEDS_IMAGES = ("attention", "receptive_field")
NUM_SHOWN = 6
_NAMES = {
    "attention": "attention that can be read",
    "filters": "convolution over the image",
    "positions": "position embedding",
    "biases": "relative biases",
    "receptive_field": "stages whose receptive field can be measured",
}


@dataclass(frozen=True)
class LayerStudy:
    """One attention layer over all images. heads: which were asked for, H of them. distance: (H,) in pixels, entropy:
    (H,) in nats. maps: (M, H, h, w), what the readout's token, or the mean over the patches, gives to each patch."""

    layer: AttentionLayer
    heads: tuple[int, ...]
    distance: Tensor
    entropy: Tensor
    maps: Tensor


@dataclass(frozen=True)
class AttentionStudy:
    """rollout: (M, h, w), what the readout takes from each patch of the first layer; None where not all layers and
    heads were asked for. pool_maps: (M, H, h, w) of an attention pooling head."""

    readout: Readout
    layers: tuple[LayerStudy, ...]
    rollout: Tensor | None
    fusion: Fusion
    pool_maps: Tensor | None


@dataclass(frozen=True)
class Insight:
    """One network, seen from inside. pictures: (M, S, S, 3) uint8, of images that are shown. similarity: (h, w, h, w).
    components: of the filters, and their shares of the variance. missing: a line for each thing that isn't here."""

    name: str
    arch: str
    source: str
    image_size: int
    num_images: int
    pictures: Tensor
    missing: tuple[str, ...]
    attention: AttentionStudy | None = None
    filters: Filters | None = None
    components: tuple[Tensor, Tensor] | None = None
    similarity: Tensor | None = None
    biases: tuple[RelativeBias, ...] = ()
    fields: tuple[ReceptiveField, ...] = ()


def inspect_network(
    network: nn.Module,
    images: Tensor | None,
    pictures: Tensor | None,
    *,
    name: str,
    arch: str,
    source: str,
    image_size: int,
    only: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    fusion: Fusion = "mean",
    num_shown: int = NUM_SHOWN,
) -> Insight:
    """Look into a network of `build_model`, which is left as it was.

    images: (B, C, S, S) as it takes them, on its device; pictures: the same as uint8 (B, C, S, S). None for neither, where
    nothing that is asked for needs images. only: of SECTIONS; None for all that the network has. InputError: nothing of what
    is asked for is there, or it needs images.
    """
    wanted = _wanted(network, arch, only, layers, heads)
    asked = [each for each in SECTIONS if only is None or each in only]
    missing = [f"{arch} has no {_NAMES[each]}." for each in asked if each not in wanted]
    if images is None and (needing := [each for each in wanted if each in NEEDS_IMAGES]):
        raise InputError(f"{' and '.join(needing)} need images: give --images, or name other parts with --only")
    shown = torch.empty(0) if images is None or pictures is None else _as_pictures(pictures[:num_shown])
    attention = None
    if "attention" in wanted and images is not None:
        attention = _study_attention(network, images, layers, heads, fusion, num_shown)
        if attention.rollout is None:
            missing.append("Rollout goes through all layers and heads, and only some were asked for.")
    filters = first_filters(network) if "filters" in wanted else None
    table = position_embedding(network) if "positions" in wanted else None
    fields: list[ReceptiveField] = []
    if "receptive_field" in wanted and images is not None:
        fields = effective_receptive_fields(network, images)
        if not fields:  # some of timm's stages give tokens, no map
            missing.append(f"{arch} has no {_NAMES['receptive_field']}.")
    return Insight(
        name=name,
        arch=arch,
        source=source,
        image_size=image_size,
        num_images=0 if images is None else len(images),
        pictures=shown,
        missing=tuple(missing),
        attention=attention,
        filters=filters,
        components=None if filters is None else principal_components(filters.kernels),
        similarity=None if table is None else position_similarity(*table),
        biases=tuple(relative_biases(network)) if "biases" in wanted else (),
        fields=tuple(fields),
    )


def _wanted(
    network: nn.Module,
    arch: str,
    only: Sequence[str] | None,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
) -> list[str]:
    """Sections to make, in the order of SECTIONS."""
    has: dict[str, Callable[[], object]] = {
        "attention": lambda: attention_layers(network).layers,
        "filters": lambda: first_filters(network),
        "positions": lambda: position_embedding(network),
        "biases": lambda: relative_biases(network),
        "receptive_field": lambda: stages(network),
    }
    if only is not None and (unknown := [each for each in only if each not in SECTIONS]):
        raise InputError(f"--only: {unknown[0]!r} is none of {', '.join(SECTIONS)}")
    wanted = [each for each in SECTIONS if (only is None or each in only) and has[each]()]
    if only is not None and not wanted:
        lacking = [each for each in SECTIONS if each in only]
        what = " and no ".join(_NAMES[each] for each in lacking)
        raise InputError(f"{arch} has no {what}: leave {' and '.join(lacking)} out of --only")
    for setting, given in (("--layers", layers), ("--heads", heads)):
        if given is not None and "attention" not in wanted:
            is_asked = only is None or "attention" in only
            why = f"{arch} has no {_NAMES['attention']}" if is_asked else "--only leaves attention out"
            raise InputError(f"{setting} chooses among attention, and {why}")
    return wanted


def _as_pictures(pixels: Tensor) -> Tensor:
    """uint8 (M, C, S, S) to (M, S, S, 3)."""
    colours = pixels if pixels.shape[1] == 3 else pixels.float().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return colours.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def _study_attention(
    network: nn.Module,
    images: Tensor,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    fusion: Fusion,
    num_shown: int,
) -> AttentionStudy:
    study = _Study(network, len(images), layers, heads, fusion, num_shown)
    capture_attention(network, images, study.visit, layers=study.asked, heads=heads, visit_pool=study.visit_pool)
    return study.close()


class _Study:
    """Takes weights as they come by, layer after layer of one part of the batch after the other, and keeps no weights."""

    def __init__(
        self,
        network: nn.Module,
        num_images: int,
        layers: Sequence[int] | None,
        heads: Sequence[int] | None,
        fusion: Fusion,
        num_shown: int,
    ) -> None:
        self.reader = attention_layers(network)
        self.asked = choose_layers(self.reader, layers)
        self.heads, self.fusion = heads, fusion
        self.num_images, self.num_shown = num_images, num_shown
        self.distance: dict[int, Tensor] = {}
        self.entropy: dict[int, Tensor] = {}
        self.maps: dict[int, list[Tensor]] = {index: [] for index in self.asked}
        self.pool_maps: list[Tensor] = []
        self.rollouts: list[Tensor] = []
        self.follows = heads is None and len(self.asked) == len(self.reader.layers)
        self.product = Rollout(fusion)

    def visit(self, index: int, place: slice, weights: Tensor) -> None:
        layer = self.reader.layers[index]
        prefix = layer.num_prefix
        distance = attention_distance(weights, layer.grid, layer.stride, prefix).cpu().double().sum(0)
        entropy = attention_entropy(weights).cpu().double().sum(0)  # on the host: Apple's GPUs have no float64
        self.distance[index] = self.distance.get(index, 0) + distance
        self.entropy[index] = self.entropy.get(index, 0) + entropy
        if shown := self._num_shown(place):
            some = weights[:shown]
            is_token = self.reader.readout == "class token"
            rows = some[:, :, 0, prefix:] if is_token else some[:, :, prefix:, prefix:].mean(2)
            self.maps[index].append(rows.unflatten(-1, layer.grid).cpu())
            if self.follows:
                self._follow(index, layer, some)

    def _num_shown(self, place: slice) -> int:
        """How many of these images are shown: the first ones of all."""
        return max(0, min(place.stop, self.num_shown) - place.start)

    def _follow(self, index: int, layer: AttentionLayer, weights: Tensor) -> None:
        if index == self.asked[0]:
            self.product = Rollout(self.fusion)
        self.product.add(weights, layer.grid)
        if index == self.asked[-1] and self.reader.pool is None:
            prefix = layer.num_prefix
            is_token = self.reader.readout == "class token"
            found = self.product.from_token(0, prefix) if is_token else self.product.from_patches(prefix)
            self.rollouts.append(found.cpu())

    def visit_pool(self, place: slice, weights: Tensor) -> None:
        if shown := self._num_shown(place):
            layer = self.reader.layers[-1]
            some = weights[:shown, :, 0]  # (b, H, N)
            self.pool_maps.append(some.unflatten(-1, layer.grid).cpu())
            if self.follows:
                self.rollouts.append(self.product.from_patches(layer.num_prefix, some.mean(1)).cpu())

    def close(self) -> AttentionStudy:
        studied = []
        for index in self.asked:
            layer = self.reader.layers[index]
            chosen = tuple(range(layer.num_heads)) if self.heads is None else tuple(sorted(set(self.heads)))
            distance, entropy = self.distance[index] / self.num_images, self.entropy[index] / self.num_images
            studied.append(LayerStudy(layer, chosen, distance, entropy, torch.cat(self.maps[index])))
        first = self.reader.layers[0].grid
        return AttentionStudy(
            self.reader.readout,
            tuple(studied),
            torch.cat(self.rollouts).unflatten(-1, first) if self.rollouts else None,
            self.fusion,
            torch.cat(self.pool_maps) if self.pool_maps else None,
        )

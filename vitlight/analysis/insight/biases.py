"""The relative biases that a CoAtNet's attention has learned: what it adds to a logit for a displacement in the grid."""

import math
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from vitlight.analysis.insight.capture import plain_network
from vitlight.models.coatnet import CoAtNet
from vitlight.models.coatnet_blocks import TransformerBlock

__all__ = ["RelativeBias", "relative_biases"]


@dataclass(frozen=True)
class RelativeBias:
    """tables: (H, 2 g - 1, 2 g - 1) of a layer with a grid of g x g, float32 on the CPU. The middle is the displacement 0; a
    key below and to the right of its query stands below and to the right. index: among the attention layers, first to last;
    stride: pixels of the image to one step."""

    index: int
    name: str
    tables: Tensor
    stride: int


def relative_biases(network: nn.Module) -> list[RelativeBias]:
    """Of each attention layer, first to last; empty for what is no CoAtNet or has relative_attention=False."""
    network = plain_network(network)
    if not isinstance(network, CoAtNet):
        return []
    found = []
    index = 0
    for i, stage in enumerate(network.stages):
        stride = math.prod(network.config.strides[: i + 2])  # the stem is stage 0 of the config
        for j, block in enumerate(cast(nn.ModuleList, stage)):
            if not isinstance(block, TransformerBlock):
                continue
            if block.bias_table is not None:
                table = block.bias_table.detach().float().cpu()
                found.append(RelativeBias(index, f"stages.{i}.{j}.bias_table", table, stride))
            index += 1
    return found

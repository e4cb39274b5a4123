"""What a model costs: parameters, multiply-adds of a forward pass, FLOPs and memory of training.

The convention, stated here and used everywhere:

* A MAC is one multiply-add. A FLOP is half a MAC, so a forward pass is 2 x forward_macs FLOPs.
* `forward_macs` is for one image in evaluation mode, and counts matrix products and convolutions only: linear layers,
  convolutions, and both products of attention (queries with keys, weights with values). Biases, norms, weight
  standardisation, activations, softmax, pooling, position embeddings and relative biases are not counted.
* A backward pass costs two forward passes, so `train_flops` = 3 x 2 x forward_macs x samples_seen.
* Both are nominal: of the published network. What training leaves out (a branch that stochastic depth drops, tokens of
  a last block that reach no output) is not subtracted, and what activation checkpointing does twice is not added: it is
  `recompute_flops`, apart.

Papers differ: CoAtNet, EfficientNet and timm print MACs and call them FLOPs; Scaling ViT and SoViT print 2 x MACs. timm
and torchvision count more than products: timm adds fvcore's guess for norms and weight standardisation.

Everything is counted on shapes alone, on the meta device or on fakes: no weight or activation is allocated.
"""

from vitlight.cost.archs import count_models, model_table
from vitlight.cost.counts import (
    TrainingCost,
    arch_forward_macs,
    arch_params,
    count_params,
    forward_macs,
    train_flops,
    training_cost,
)
from vitlight.cost.modules import group_table, module_table, params_by_group

__all__ = [
    "TrainingCost",
    "arch_forward_macs",
    "arch_params",
    "count_models",
    "count_params",
    "forward_macs",
    "group_table",
    "model_table",
    "module_table",
    "params_by_group",
    "train_flops",
    "training_cost",
]

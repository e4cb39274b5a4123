"""torchvision's Python parts beside a CPU-only torch.

The wheels of the package index are compiled against CUDA torch, so their library can't load beside a CPU one, and the import
stops at two operators that only detection models use. Declaring them lets the import pass; nothing here calls them.
"""

import torch

_declared = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _declared.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision import transforms  # noqa: E402

__all__ = ["transforms"]

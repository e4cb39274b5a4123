"""torchvision and timm, as references for our own operations. `make install-dev` puts them into <venv>/reference, beside
the packages of the environment: where torchvision's compiled part doesn't fit torch, its mere presence breaks others."""

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from tests.requirements import require

__all__ = ["reference"]

_FOLDER = Path(sys.prefix) / "reference"
_BOX_OPS = ("nms", "qnms")


@cache
def _declare_box_ops() -> torch.library.Library | None:
    """torchvision can't be imported unless two operators exist that need its compiled part; none of our tests calls them.
    The cache keeps the declaration alive."""
    try:
        torch.ops.load_library(_FOLDER / "torchvision" / "_C.so")
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in _BOX_OPS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


@cache
def reference(module: str) -> ModuleType:
    """A module of torchvision or timm; the calling test skips, or fails where everything is required, without them."""
    present = all((_FOLDER / name / "__init__.py").is_file() for name in ("torchvision", "timm"))
    require(present, "torchvision and timm in <venv>/reference, which `make install-dev` installs")
    _declare_box_ops()
    sys.path.insert(0, str(_FOLDER))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(_FOLDER))

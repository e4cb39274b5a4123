"""torchvision, timm and transformers, as references for our own operations. `make install-dev` puts them into
<venv>/reference and <venv>/reference-hf, beside the packages of the environment: where torchvision's compiled part doesn't
fit torch, its mere presence breaks others, transformers among them."""

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from tests.requirements import require

__all__ = ["reference"]

_FOLDER = Path(sys.prefix) / "reference"
_FOLDERS = {"torchvision": _FOLDER, "timm": _FOLDER, "transformers": Path(sys.prefix) / "reference-hf"}
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
    """A module of torchvision, timm or transformers; the calling test skips, or fails where everything is required, without
    them."""
    folder = _FOLDERS[module.partition(".")[0]]
    names = [name for name, its_folder in _FOLDERS.items() if its_folder == folder]
    present = all((folder / name / "__init__.py").is_file() for name in names)
    require(present, f"{' and '.join(names)} in <venv>/{folder.name}, which `make install-dev` installs")
    if "torchvision" in names:
        _declare_box_ops()
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(folder))

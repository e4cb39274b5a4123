"""vitlight's own names: what `model.state_dict()` holds, and the checkpoints of our runs."""

import re
from collections.abc import Collection

from torch import nn

from vitlight.models.layouts.entry import Entry, same

__all__ = ["NAME", "entries", "recognises"]

NAME = "vitlight"

_OURS = re.compile(r"patch_embed\.weight|stages\.\d+\.\d+\..*|network\..*")


def recognises(names: Collection[str]) -> bool:
    """Whether these are the names of one of our families, or of a `timm:` model as we have it."""
    return any(_OURS.fullmatch(name) for name in names)


def entries(model: nn.Module) -> list[Entry]:
    """Every tensor of `model` under its own name; any model has this layout, a `timm:` one too."""
    return [same(name, name) for name in model.state_dict()]

"""How other projects name and shape the tensors of our models, one module a project."""

from collections.abc import Collection
from typing import Protocol

from torch import nn

from vitlight.models.layouts import google, huggingface, timm, vitlight
from vitlight.models.layouts.entry import Entry

__all__ = ["LAYOUTS", "Layout"]


class Layout(Protocol):
    """What a layout module has. Some also have

    `ignored`: patterns of their tensors that hold nothing of ours;
    `canonical(tensors, model)`: the tensors under the names of `entries`, where a project has several spellings;
    `check_writable(model)`: InputError for a model that can be read in this layout but not written.
    """

    NAME: str

    def recognises(self, names: Collection[str]) -> bool:
        """Whether the names alone say that weights are in this layout."""

    def entries(self, model: nn.Module) -> list[Entry]:
        """Every tensor of `model.state_dict()` once. InputError where the project has no such model or option."""


LAYOUTS: dict[str, Layout] = {layout.NAME: layout for layout in (timm, google, huggingface, vitlight)}

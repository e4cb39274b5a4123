"""Reads and writes the weights of our models, under our names and other projects'.

A file is checked as a whole before any tensor is copied: a tensor that is missing, left over or of another shape is an
InputError that names it, and the model stays as it was. Only position embeddings and relative bias tables may come from
another resolution; they are resized.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vitlight.errors import InputError
from vitlight.models.external import TimmModel
from vitlight.models.layers import check_choice
from vitlight.models.layouts import LAYOUTS, Layout
from vitlight.models.layouts.entry import Entry
from vitlight.models.layouts.fit import check_dtypes, check_names, fitted, misfit_message
from vitlight.models.layouts.resize import Grids
from vitlight.models.weight_files import read_state, write_state

__all__ = ["LoadReport", "convert_state", "find_layout", "has_classifier", "load_weights", "read_state", "save_weights"]

Head = Literal["load", "fresh"]

# The layer before the classifier that some were pre-trained with, in any layout.
_BEFORE_HEAD = re.compile(r"(.*[./])?(pre_logits|pooler)[./].*")


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did: of their tensors, `num_tensors` were used; of our parameters, `num_params` were set.

    `resized` gives for each of our tensors from another resolution the patches (or, for a bias table, displacements)
    along both sides, before and after; `fresh` are our tensors left as they were, `ignored` theirs that hold nothing.
    """

    layout: str
    num_tensors: int
    num_params: int
    resized: dict[str, Grids]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]

    def describe_resized(self) -> list[str]:
        """A few words for each pair of grids: what was resized, from which to which."""
        by_grids: dict[Grids, list[str]] = {}
        for name, grids in self.resized.items():
            by_grids.setdefault(grids, []).append(name)
        return [
            f"{names[0] if len(names) == 1 else f'{len(names)} bias tables'} resized from {before[0]}x{before[1]} to "
            f"{after[0]}x{after[1]}"
            for (before, after), names in by_grids.items()
        ]


def find_layout(names: Collection[str], layout: str = "auto") -> Layout:
    """The layout of that name, or with "auto" the one whose names these are. InputError where they are another's."""
    check_choice(("auto", *LAYOUTS), layout=layout)
    recognising = [each for each in LAYOUTS.values() if each.recognises(names)]
    if layout != "auto":
        chosen = LAYOUTS[layout]
        if recognising and chosen not in recognising:
            raise InputError(
                f"layout={layout!r}, but the tensors are named as in layout {recognising[0].NAME!r} "
                f"({next(iter(names))}, ...); set that or 'auto'"
            )
        return chosen
    if not recognising:
        raise InputError(
            f"the tensors ({', '.join(list(names)[:3])}, ...) are named as in none of the layouts "
            f"{', '.join(LAYOUTS)}; set layout if it is one of them"
        )
    return recognising[0]


def has_classifier(model: nn.Module, source: str | Path | Mapping[str, Any], layout: str = "auto") -> bool:
    """Whether any tensor of the model's classifier is in `source`, which is read as `load_weights` does."""
    state = read_state(source)
    chosen = _layout_for(model, state, layout)
    names = _canonical(chosen, state, model)
    return any(name in names for entry in _of_head(_entries(chosen, model), model) for name in entry.theirs)


@torch.no_grad()
def load_weights(
    model: nn.Module, source: str | Path | Mapping[str, Any], layout: str = "auto", head: Head = "load"
) -> LoadReport:
    """Copy weights into `model`, all of them or none, cast to its dtypes.

    `source` is a file, a hub name or address, or a dict of tensors; `head="fresh"` leaves the classifier as it is, for
    another set of classes. A representation layer is then loaded where the model has one, else left out with the head
    that it was trained for, as in google-research/vision_transformer. Raises InputError as said above, and for a grid that
    can't be resized.
    """
    check_choice(get_args(Head), head=head)
    state = read_state(source)
    ours = model.state_dict()
    if any(tensor.is_meta for tensor in ours.values()):
        raise InputError("the model is on the meta device, which holds no numbers; build it on the CPU")
    chosen = _layout_for(model, state, layout)
    state = _canonical(chosen, state, model)
    everything = _entries(chosen, model)
    fresh = _of_head(everything, model) if head == "fresh" else []
    entries = [entry for entry in everything if entry not in fresh]
    left_out = {name for entry in fresh for name in entry.theirs}
    ignored = [name for name in state if any(re.fullmatch(p, name) for p in getattr(chosen, "ignored", ()))]
    if head == "fresh":
        placed = {name for entry in entries for name in entry.theirs}
        ignored += [name for name in state if _BEFORE_HEAD.fullmatch(name) and name not in placed | left_out]
    check_names(chosen.NAME, entries, [name for name in state if name not in left_out and name not in ignored])
    check_dtypes(entries, state, ours)

    loaded: dict[str, Tensor] = {}
    resized: dict[str, Grids] = {}
    misfits: list[Entry] = []
    for entry in entries:
        tensors = fitted(entry, [state[name] for name in entry.theirs], ours)
        if tensors is None:
            misfits.append(entry)
            continue
        for name, (tensor, grids) in zip(entry.ours, tensors, strict=True):
            loaded[name] = tensor
            if grids is not None:
                resized[name] = grids
    if misfits:
        raise InputError(misfit_message(misfits, state, ours, _head_prefixes(model)))
    for name, tensor in loaded.items():
        ours[name].copy_(tensor)
    return LoadReport(
        layout=chosen.NAME,
        num_tensors=sum(len(entry.theirs) for entry in entries),
        num_params=sum(parameter.numel() for name, parameter in model.named_parameters() if name in loaded),
        resized=resized,
        fresh=tuple(name for entry in fresh for name in entry.ours),
        ignored=tuple(ignored),
    )


@torch.no_grad()
def convert_state(model: nn.Module, layout: str) -> dict[str, Tensor]:
    """The weights of `model` under the names and in the shapes of a layout; they may share memory with the model's.

    InputError where that project has no such model, or the model an option that it can't express.
    """
    check_choice(tuple(LAYOUTS), layout=layout)
    chosen = LAYOUTS[layout]
    if (check_writable := getattr(chosen, "check_writable", None)) is not None:
        check_writable(model)
    ours = model.state_dict()
    state: dict[str, Tensor] = {}
    for entry in _entries(chosen, model):
        state |= zip(entry.theirs, entry.to_theirs([ours[name] for name in entry.ours]), strict=True)
    return state


def save_weights(model: nn.Module, path: str | Path, layout: str = "vitlight") -> None:
    """Write the weights of `model` in a layout to a .safetensors, .npz or .pt file, whole or not at all."""
    write_state(convert_state(model, layout), path)


def _entries(layout: Layout, model: nn.Module) -> list[Entry]:
    entries = layout.entries(model)
    assert sorted(name for entry in entries for name in entry.ours) == sorted(model.state_dict())
    theirs = [name for entry in entries for name in entry.theirs]
    assert len(theirs) == len(set(theirs))
    return entries


def _canonical(layout: Layout, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`state` under the names that the layout's entries have."""
    if (canonical := getattr(layout, "canonical", None)) is None:
        return state
    renamed: dict[str, Tensor] = canonical(state, model)
    return renamed


def _of_head(entries: list[Entry], model: nn.Module) -> list[Entry]:
    heads = _head_prefixes(model)
    return [entry for entry in entries if entry.ours and entry.ours[0].startswith(heads)]


def _layout_for(model: nn.Module, names: Collection[str], layout: str) -> Layout:
    if layout == "auto" and set(names) == set(model.state_dict()):
        return LAYOUTS["vitlight"]
    if isinstance(model, TimmModel) and layout == "auto":
        # Its names are timm's own, of any architecture, with ours or without.
        return LAYOUTS["vitlight" if any(name.startswith("network.") for name in names) else "timm"]
    return LAYOUTS["timm"] if isinstance(model, TimmModel) and layout == "timm" else find_layout(names, layout)


def _head_prefixes(model: nn.Module) -> tuple[str, ...]:
    if not isinstance(model, TimmModel):
        return ("head.",)
    classifiers = model.network.pretrained_cfg["classifier"]  # type: ignore[index]
    return tuple(f"network.{name}." for name in ((classifiers,) if isinstance(classifiers, str) else classifiers))

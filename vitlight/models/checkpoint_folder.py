"""A checkpoint that several ranks wrote together: a folder.

`rest.pt` is the checkpoint as one process saves it (torch.save), but for the tensors that were split over the ranks: each
is a meta tensor there, of its whole shape. Their values are in the format of torch.distributed.checkpoint (`.metadata` and
`__RANK_0.distcp`), under their places in that tree, such as `state_dict/model.head.weight`. Any number of processes can
read it.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["REST", "is_checkpoint_folder", "map_tensors", "read_checkpoint_folder", "read_parts", "read_rest"]

REST = "rest.pt"


def is_checkpoint_folder(path: Path) -> bool:
    return (path / REST).is_file()


def map_tensors(tree: Any, change: Callable[[str, Tensor], Any], place: str = "") -> Any:
    """The same nested dicts, lists and tuples with `change(place, tensor)` for each tensor; places are keys joined by /."""
    if isinstance(tree, dict):
        return {name: map_tensors(each, change, f"{place}/{name}".lstrip("/")) for name, each in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(each, change, f"{place}/{index}") for index, each in enumerate(tree))
    return change(place, tree) if isinstance(tree, Tensor) else tree


def read_rest(folder: Path) -> dict[str, Any]:
    """The checkpoint with meta tensors for what is in parts."""
    rest: dict[str, Any] = torch.load(folder / REST, map_location="cpu", weights_only=True)
    return rest


def read_parts(
    folder: Path, rest: dict[str, Any], empty_for: Callable[[str, Tensor], Tensor] | None = None
) -> dict[str, Any]:
    """`rest` with its meta tensors replaced by what they stand for: whole, on the CPU, or in the tensor that `empty_for`
    makes for a place and a meta tensor, of which a DTensor is given this rank's part alone. Nothing is communicated."""
    targets: dict[str, Tensor] = {}

    def prepare(place: str, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            targets[place] = empty_for(place, tensor) if empty_for else torch.empty_like(tensor, device="cpu")
        return targets.get(place, tensor)

    filled: dict[str, Any] = map_tensors(rest, prepare)
    if targets:
        from vitlight.models.checkpoint_parts import load_parts  # what it imports takes most of a second

        load_parts(folder, targets)
    return filled


def read_checkpoint_folder(folder: Path, names: Collection[str] | None = None) -> dict[str, Any]:
    """The checkpoint as one process would have saved it, or those of its entries that have these names."""
    rest = read_rest(folder)
    return read_parts(folder, rest if names is None else {name: rest[name] for name in names if name in rest})

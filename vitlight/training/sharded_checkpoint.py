"""Writes a checkpoint of which every rank has a part, as a folder (see models/checkpoint_folder.py)."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from vitlight.models.checkpoint_folder import REST, map_tensors
from vitlight.training.checkpoint_io import root_cause

__all__ = ["separate_parts", "write_parts"]


def separate_parts(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """`rest`: the checkpoint with a meta tensor of the whole shape for each split one; `parts`: this rank's rows of those,
    by their places."""
    parts: dict[str, Tensor] = {}

    def separate(place: str, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor
        assert tensor.placements == (Shard(0),), place
        parts[place] = tensor.to_local().detach()
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    rest = map_tensors(checkpoint, separate)
    return {"rest": rest, "parts": parts}


def write_parts(state: dict[str, Any], folder: Path, group: dist.ProcessGroup) -> list[Path]:
    """Write what `separate_parts` gave, all ranks together, into `folder`, flushed: the files this rank has written. Where
    one of them can't write, all raise, but for `rest.pt`, which is rank 0's own. group: of all ranks, on CPUs."""
    mesh = DeviceMesh.from_group(group, "cpu")
    whole: dict[str, Tensor] = {}
    map_tensors(state["rest"], lambda place, tensor: whole.setdefault(place, tensor) if tensor.is_meta else None)
    tensors = {
        place: DTensor.from_local(
            part, mesh, (Shard(0),), run_check=False, shape=whole[place].shape, stride=whole[place].stride()
        )
        for place, part in state["parts"].items()
    }
    try:
        dcp.save(tensors, storage_writer=_Writer(folder), process_group=group)
    except CheckpointException as error:  # no Exception, which callers look for
        raise next(iter(error.failures.values()))[0] from None
    rank = dist.get_rank(group)
    if rank == 0:
        with (folder / REST).open("wb") as file:
            torch.save(state["rest"], file)
    names = [f"__{rank}_*.distcp", *((REST, ".metadata") if rank == 0 else ())]
    return sorted(path for name in names for path in folder.glob(name))


class _Writer(dcp.FileSystemWriter):
    """Keeps to itself where the folder lay when it was written, and says why it can't write."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise root_cause(error) from None  # other ranks are sent the error alone, without what it came of

    def storage_meta(self) -> StorageMeta | None:
        return None

"""Reads what torch.distributed.checkpoint wrote, and runs no code of it."""

import dataclasses
import enum
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

__all__ = ["load_parts"]

_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")


def load_parts(folder: Path, targets: dict[str, Tensor]) -> None:
    """Fill tensors from what lies under their names; of a DTensor this rank's part alone. Nothing is communicated."""
    reader = _Reader(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # each process reads alone
        try:
            dcp.load(targets, storage_reader=reader, no_dist=True)
        except CheckpointException as error:  # no Exception, which callers look for
            raise next(iter(error.failures.values()))[0] from None


class _Reader(dcp.FileSystemReader):
    """Reads `.metadata`, a pickle, without running code of the file: torch's own reader would."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with (folder / ".metadata").open("rb") as file:
            self._metadata: Metadata = _MetadataUnpickler(file).load()
        self._metadata.storage_meta = StorageMeta()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The plain classes that the format is made of, and torch's dtypes and the like; pickle.UnpicklingError else."""
        if "." not in name and module in _MODULES:
            found = super().find_class(module, name)
            if isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, enum.Enum)):
                return found
        if module == "torch" and "." not in name:
            found = super().find_class(module, name)
            if found is torch.Size or isinstance(found, torch.dtype | torch.layout | torch.memory_format):
                return found
        if (module, name) == ("torch.serialization", "_get_layout"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")

"""Files of weights: .safetensors, .npz, and torch's .pt .pth .bin .ckpt, Lightning's checkpoints among them."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vitlight.errors import InputError
from vitlight.models.checkpoint_folder import is_checkpoint_folder, read_checkpoint_folder
from vitlight.models.hub import fetch_weights, is_remote

__all__ = ["read_state", "write_state"]

_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_READ = (".safetensors", ".npz", *_TORCH)
_WRITTEN = (".safetensors", ".npz", ".pt", ".pth")


def read_state(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, of a file, a hub name or an address (`fetch_weights`), or a dict of tensors.

    Of a Lightning checkpoint, a file or the folder that several ranks wrote, what lies under `model.` is read, where
    anything does; `module.` (DDP) and `_orig_mod.` (torch.compile) are taken out of the names. No code of a file is run.
    InputError for what can't be read.
    """
    if isinstance(source, Mapping):
        return _unwrapped(source, "the state dict")
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"the weights given are of type {type(source).__name__}, neither a path nor a name nor a dict of tensors"
        )
    path = fetch_weights(source) if isinstance(source, str) and is_remote(source) else Path(source)
    is_folder = is_checkpoint_folder(path)
    if path.is_dir() and not is_folder:
        raise InputError(f"weights {path} is a folder; name the file in it, one of {', '.join(_READ)}")
    if not is_folder and not path.is_file():
        raise InputError(f"weights {path} is no file")
    if not is_folder and path.suffix not in _READ:
        raise InputError(f"weights {path} end in {path.suffix!r}; what can be read ends in {', '.join(_READ)}")
    try:
        return _read(path)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights {path} hold more than tensors and plain values, and no code is run from a file of weights; "
            "save the state dict alone"
        ) from error
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(f"weights {path} can't be read as {path.suffix}: {reason}") from error


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        return _unwrapped(read_checkpoint_folder(path, ("state_dict", "pytorch-lightning_version")), str(path))
    if path.suffix == ".safetensors":
        return _unwrapped(safetensors.torch.load_file(path), str(path))
    if path.suffix == ".npz":
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise InputError(f"weights {path} are one array without a name, a .npy; write them with numpy.savez")
            with arrays:
                return _unwrapped({name: _from_numpy(arrays[name], name, path) for name in arrays.files}, str(path))
    return _unwrapped(torch.load(path, map_location="cpu", weights_only=True), str(path))


def _from_numpy(member: np.ndarray | bytes, name: str, path: Path) -> Tensor:
    array = np.asarray(member)  # bytes where the archive has a file that is no array
    if array.dtype == np.dtype("V2"):  # how NumPy reads a bfloat16 that JAX wrote
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"weights {path} hold {name!r} of NumPy's dtype {array.dtype.str}, which torch has not"
        ) from error


def _unwrapped(loaded: Any, shown: str) -> dict[str, Tensor]:
    """The one state dict in what a file holds, under the names of the bare model."""
    if not isinstance(loaded, Mapping):
        raise InputError(f"{shown} holds a {type(loaded).__name__}, not tensors by name")
    is_lightning = "pytorch-lightning_version" in loaded
    for key in ("state_dict", "model"):
        if isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if no_names := [name for name in loaded if not isinstance(name, str)]:
        raise InputError(f"{shown} holds a tensor under {no_names[0]!r}, which is no name; names are strings")
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in loaded.items()}
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if is_lightning and any(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    faults = (f"{name!r}, which {fault}" for name, tensor in state.items() if (fault := _fault(tensor)))
    found = next(faults, None if state else "nothing")
    if found is not None:
        raise InputError(
            f"{shown} holds {found}; weights are dense tensors by name, bare or under 'state_dict' or 'model'"
        )
    return state


def _fault(tensor: Any) -> str | None:
    if not isinstance(tensor, Tensor):
        return "is no tensor"
    if tensor.is_meta:
        return "is on the meta device, which holds no numbers"
    if tensor.layout != torch.strided:
        return f"is a tensor of layout {tensor.layout}"
    return f"is quantised ({tensor.dtype})" if tensor.is_quantized else None


def write_state(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write tensors to a file, whole or not at all; its suffix, .safetensors, .npz, .pt or .pth, says how.

    InputError for another suffix, and for a file that can't be written.
    """
    path = Path(path)
    if path.suffix not in _WRITTEN:
        raise InputError(f"weights {path} end in {path.suffix!r}; what can be written ends in {', '.join(_WRITTEN)}")
    if not path.parent.is_dir():
        raise InputError(f"weights {path}: there is no folder {path.parent}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            if path.suffix == ".safetensors":
                file.write(safetensors.torch.save(tensors, metadata={"format": "pt"}))
            elif path.suffix == ".npz":
                _write_npz(file, tensors)
            else:
                torch.save(tensors, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise InputError(f"weights {path} can't be written: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)


def _write_npz(file: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    # np.savez takes names as keyword arguments and so can't write every name.
    with zipfile.ZipFile(file, "w") as archive:
        for name, tensor in tensors.items():
            if tensor.dtype == torch.bfloat16:
                raise InputError(f"{name} is bfloat16, which .npz does not have; write .safetensors or a float32 model")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, tensor.numpy(), allow_pickle=False)

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.models.small_models import State, copied, resnet, same_numbers, vit
from vitlight.errors import InputError
from vitlight.models.weights import load_weights, read_state, save_weights

Build = Callable[..., nn.Module]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".pth"])
@pytest.mark.parametrize("build", [vit, resnet])
def test_files_hold_every_bit(tmp_path: Path, build: Build, suffix: str) -> None:
    written, read = build(seed=0), build(seed=1)
    save_weights(written, tmp_path / f"w{suffix}", "timm")
    assert load_weights(read, tmp_path / f"w{suffix}").layout == "timm"
    assert same_numbers(read.state_dict(), written.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == [f"w{suffix}"]


class Classifier(pl.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.criterion = nn.PReLU()  # a tensor that is not the model's

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.criterion(self.model(batch[0])).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.mark.filterwarnings("ignore:.*(num_workers|log_every_n_steps|LeafSpec).*")
def test_a_lightning_checkpoint(tmp_path: Path) -> None:
    model = resnet()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32)), batch_size=4)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, enable_model_summary=False, **options)
    trainer.fit(Classifier(model), data)
    trainer.save_checkpoint(tmp_path / "step.ckpt")
    read = resnet(seed=1)
    assert load_weights(read, tmp_path / "step.ckpt").layout == "vitlight"
    assert same_numbers(read.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "arch": "a"},
        lambda state: {
            "state_dict": {f"model._orig_mod.{name}": tensor for name, tensor in state.items()},
            "pytorch-lightning_version": "2.6.6",
        },
    ],
)
def test_wrappings_of_a_state_dict(wrapped: Callable[[State], dict[str, Any]]) -> None:
    written, read = vit(), vit(seed=1)
    load_weights(read, wrapped(copied(written)))
    assert same_numbers(read.state_dict(), written.state_dict())


def test_a_bfloat16_array_of_jax(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.0, 3e38]).bfloat16()
    # NumPy has no bfloat16: JAX's arrays come back as two bytes of nothing in particular.
    np.savez(tmp_path / "w.npz", params=values.view(torch.int16).numpy().view("V2"))
    assert torch.equal(read_state(tmp_path / "w.npz")["params"], values)


class Code:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_files_that_can_not_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = vit()

    def fails(source: Path, told: str) -> None:
        with pytest.raises(InputError, match=told) as error:
            load_weights(model, source)
        assert "\n" not in str(error.value)

    fails(tmp_path / "none.pt", "none.pt is no file")
    fails(tmp_path, f"{re.escape(str(tmp_path))} is a folder")
    (tmp_path / "w.h5").touch()
    fails(tmp_path / "w.h5", r"end in '\.h5'; what can be read ends in \.safetensors, \.npz")
    for suffix in (".safetensors", ".npz", ".pt"):
        path = tmp_path / f"w{suffix}"
        save_weights(model, path)
        path.write_bytes(path.read_bytes()[:1000])
        fails(path, f"w{re.escape(suffix)} can't be read as {re.escape(suffix)}: ")
        path.write_bytes(b"")
        fails(path, f"w{re.escape(suffix)} can't be read as")
    torch.save({"state_dict": {}, "code": Code()}, tmp_path / "code.pt")
    fails(tmp_path / "code.pt", "no code is run from a file of weights")
    assert capsys.readouterr().out == ""
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    fails(tmp_path / "list.pt", "holds a list, not tensors by name")
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "mixed.pt")
    fails(tmp_path / "mixed.pt", "'epoch', which is no tensor")
    torch.save({}, tmp_path / "empty.pt")
    fails(tmp_path / "empty.pt", "holds nothing")
    torch.save({"state_dict": {0: torch.zeros(1)}}, tmp_path / "numbered.pt")
    fails(tmp_path / "numbered.pt", "holds a tensor under 0, which is no name")
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    fails(tmp_path / "array.npz", r"array\.npz are one array without a name")
    for array, dtype in ((np.array(["x"]), "<U1"), (np.zeros(2, "V4"), r"\|V4"), (np.zeros(2, ">f4"), ">f4")):
        np.savez(tmp_path / "odd.npz", fine=np.zeros(1), odd=array)
        fails(tmp_path / "odd.npz", f"hold 'odd' of NumPy's dtype {dtype}, which torch has not")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("readme.txt", "text")
    fails(tmp_path / "text.npz", r"hold 'readme\.txt' of NumPy's dtype \|S4")
    nothing: Any = None
    fails(nothing, "weights given are of type NoneType, neither a path")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    save_weights(vit(), path, "google")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"is bfloat16, which \.npz does not have"):
        save_weights(vit(seed=1).bfloat16(), path, "google")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match=r"end in '\.ckpt'; what can be written ends in"):
        save_weights(vit(), tmp_path / "w.ckpt")
    with pytest.raises(InputError, match="there is no folder"):
        save_weights(vit(), tmp_path / "none" / "w.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(InputError, match=r"folder\.pt can't be written: Is a directory"):
        save_weights(vit(), tmp_path / "folder.pt")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "folder.pt", path]


def test_a_state_dict_is_read_without_copying() -> None:
    state = vit().state_dict()
    assert read_state(state)["norm.weight"].data_ptr() == state["norm.weight"].data_ptr()

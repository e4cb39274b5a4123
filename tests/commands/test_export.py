"""`vitlight export`: the file alone, loaded afresh, gives the model's logits, and says what it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference_libraries import reference
from tests.requirements import require
from tests.trained_runs import TINY_VIT, random_model, random_pixels, train_tiny
from vitlight.cli import main
from vitlight.models.weight_files import write_state
from vitlight.models.weights import save_weights
from vitlight.prediction import export as export_module
from vitlight.training.trained import load_trained

VIT = {"depth": 1, "width": 16, "mlp_dim": 32, "num_heads": 2}
ARCHS: dict[str, tuple[int, dict[str, Any]]] = {
    "vit_ti16": (32, VIT),
    "coatnet_nano1": (32, {}),
    "resnet_nano1": (32, {"in_channels": 1}),
    "bit_r50x1": (32, {"depths": [1, 1]}),
    "timm:test_vit": (160, {}),
}


def require_onnx() -> None:
    try:
        import onnx
        import onnxruntime
        import onnxscript

        present = all((onnx, onnxruntime, onnxscript))
    except ModuleNotFoundError:
        present = False
    require(present, "onnx, onnxruntime and onnxscript, which `make install-dev` installs")


def export(*args: object, code: int = 0) -> None:
    assert main(["export", *map(str, args)]) == code


def weights_of(arch: str, folder: Path) -> list[object]:
    """The arguments that name a file of random weights."""
    if arch.startswith("timm:"):
        reference("timm")
    size, options = ARCHS[arch]
    path = folder / "weights.safetensors"
    save_weights(random_model(arch, 6, size, **options), path)
    said = [f"--option={name}={json.dumps(value)}" for name, value in options.items() if name != "in_channels"]
    return [path, f"--arch={arch}", f"--image-size={size}", *said]


def run_pt2(path: Path, images: torch.Tensor) -> torch.Tensor:
    return torch.export.load(path).module()(images).detach()


def run_onnx(path: Path, images: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    assert result.name == "logits"
    return torch.from_numpy(session.run(["logits"], {given.name: images.contiguous().numpy()})[0])


RUNNERS = {".pt2": run_pt2, ".onnx": run_onnx}


@pytest.mark.parametrize("arch", ARCHS)
def test_an_exported_model_gives_the_same_logits(arch, tmp_path, capsys):
    require_onnx()
    source, *options = weights_of(arch, tmp_path)
    targets = [tmp_path / f"model{suffix}" for suffix in RUNNERS]
    export(source, *targets, *options, "--json")
    for said in json.loads(capsys.readouterr().out):
        assert (said["num_random"], said["num_given"], said["num_changed"]) == (8, 0, 0)
        assert said["max_difference"] <= 1e-4
        assert said["max_logit"] > 0.1

    size, extra = ARCHS[arch]
    model = random_model(arch, 6, size, **extra)
    in_channels = extra.get("in_channels", 3)
    images = (random_pixels(3, in_channels, size).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        expected = model(images)
    assert expected.abs().max() > 0.1
    for target in targets:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            got = RUNNERS[target.suffix](target, images.contiguous(memory_format=memory_format))
            assert (got - expected).abs().max() <= 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.pt2", "weights.safetensors"]


@pytest.fixture(scope="module")
def run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tiny_shards, tmp_path_factory.mktemp("run"), "--model.loss=sigmoid", options=TINY_VIT)


def test_a_run_with_preprocessing_takes_pixels_and_says_what_it_is(run, tiny_shards, tmp_path, capsys):
    require_onnx()
    targets = [tmp_path / f"model{suffix}" for suffix in RUNNERS]
    export(run, *targets, "--with-preprocessing", "--batch=4", "--check-images", tiny_shards / "test")
    captured = capsys.readouterr()
    assert captured.out.count("uint8 pixels (4, 3, 28, 28) to logits (4, 4)") == 2
    # 4 images of noise, and 3 that fill up the last of 16 batches
    assert captured.out.count("on 7 images of noise and 61 given images") == 2
    trained = load_trained(run)
    pixels = random_pixels(4, 3, 28)
    for target in targets:
        assert (RUNNERS[target.suffix](target, pixels) - trained.logits(pixels)).abs().max() <= 1e-4

    import onnx

    extra = {export_module.METADATA: ""}
    torch.export.load(targets[0], extra_files=extra)
    about = json.loads(extra[export_module.METADATA])
    assert about == json.loads({each.key: each.value for each in onnx.load(targets[1]).metadata_props}["vitlight"])
    assert (about["arch"], about["model_options"], about["run"]) == ("vit_nano1", TINY_VIT, run.name)
    assert about["digest"] == trained.digest
    assert about["preprocessing"] == {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "resize_shorter_side": 32,
        "crop": 28,
        "interpolation": "bicubic, antialiased",
    }
    assert (about["input"]["shape"], about["input"]["dtype"]) == ([4, 3, 28, 28], "uint8")
    assert about["output"]["loss"] == "sigmoid"
    assert about["versions"]["torch"].startswith(torch.__version__.partition("+")[0])


def test_a_file_that_differs_is_not_written(run, tmp_path, monkeypatch, capsys):
    load = export_module._load_pt2
    monkeypatch.setattr(export_module, "_load_pt2", lambda path: lambda images: load(path)(images) + 2e-4)
    target = tmp_path / "model.pt2"
    target.write_text("old")
    export(run, target, code=2)
    assert "is not written: its logits differ by up to 2.0e-04" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert target.read_text() == "old"
    export(run, target, "--tolerance=1e-3")
    assert target.stat().st_size > 1000


def test_another_image_size_is_exported_with_resized_positions(run, tmp_path, capsys):
    export(run, tmp_path / "large.pt2", "--image-size=56")
    assert "posemb resized from 7x7 to 14x14" in capsys.readouterr().err
    images = torch.zeros(1, 3, 56, 56)
    assert run_pt2(tmp_path / "large.pt2", images).shape == (1, 4)


def test_weights_without_a_classifier_are_not_exported(tmp_path, capsys):
    state = random_model("vit_ti16", 6, 32, **VIT).state_dict()
    write_state({name: value for name, value in state.items() if not name.startswith("head.")}, tmp_path / "w.pt")
    options = [f"--option={name}={value}" for name, value in VIT.items()]
    export(tmp_path / "w.pt", tmp_path / "x.pt2", "--arch=vit_ti16", *options, code=2)
    assert "these weights have no classifier; `vitlight probe` measures" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x.pt2").exists()


def test_bad_arguments_get_one_line(run, tmp_path, capsys):
    cases: list[tuple[tuple[object, ...], str]] = [
        ((tmp_path / "none", tmp_path / "x.pt2"), "does not exist"),
        ((run, tmp_path / "x.pth"), "ends in '.pth'"),
        ((run, tmp_path / "no" / "x.pt2"), "there is no folder"),
        (
            (run, tmp_path / "x.pt2", "--image-size=29"),
            "image_size=29 is not a multiple of the patch size 4; use 28 or 32",
        ),
        ((run, tmp_path / "x.pt2", "--batch=0"), "--batch=0 is neither dynamic nor a number"),
        ((run, tmp_path / "x.pt2", "--tolerance=0"), "--tolerance=0 is not above 0"),
        ((run, tmp_path / "x.pt2", "--check-images", tmp_path / "none.png"), "no such file or folder"),
    ]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    cases.append(((run, tmp_path / "x.pt2", "--check-images", tmp_path / "broken.png"), "can't be decoded"))
    for arguments, words in cases:
        capsys.readouterr()
        export(*arguments, code=2)
        captured = capsys.readouterr()
        last = captured.err.splitlines()[-1]
        assert words in last
        assert last.startswith("vitlight: error: ")
    assert not (tmp_path / "x.pt2").exists()

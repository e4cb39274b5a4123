"""`vitlight inspect`: pages and numbers of runs and of weights from elsewhere, and one clear line for what can't be."""

import base64
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import tiny_sample
from tests.trained_runs import TINY_VIT, random_model, train_tiny
from vitlight.analysis.insight import attention_distance, capture_attention
from vitlight.cli import main
from vitlight.data.shards import write_shards
from vitlight.models.weight_files import write_state
from vitlight.training.insight import own_images
from vitlight.training.trained import load_trained


@pytest.fixture(scope="module")
def vit(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tiny_shards, tmp_path_factory.mktemp("vit"), "--model.duration.samples=32", options=TINY_VIT)


@pytest.fixture(scope="module")
def resnet(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = ("--model.arch=resnet_nano1", "--model.duration.samples=32")
    return train_tiny(tiny_shards, tmp_path_factory.mktemp("resnet"), *more)


def inspect(*args: object, code: int = 0) -> None:
    assert main(["inspect", *map(str, args), "--device=cpu"]) == code


def error_line(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    capsys.readouterr()
    inspect(*args, code=2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line.removeprefix("vitlight: error: ")


def test_a_run_is_looked_at_with_its_own_images(vit, capsys):
    inspect(vit, "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["insight"] == str(vit / "insight" / "insight.html") and Path(told["insight"]).is_file()
    (network,) = told["networks"]
    assert network["num_images"] == 32 and network["readout"] == "class token"
    assert network["source"].startswith(str(vit))
    trained = load_trained(vit)
    images = own_images(trained.open_data(num_workers=0), 32)
    sums = torch.zeros(2)

    def visit(layer: int, place: slice, weights: torch.Tensor) -> None:
        sums.add_(attention_distance(weights, (7, 7), 4, 1).sum(0))

    capture_attention(trained.network, trained.normalize(images), visit)
    assert [row["distance_px"] for row in network["attention"]] == pytest.approx((sums / 32).tolist(), rel=1e-4)
    with (vit / "insight" / "attention.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["vit_nano1"] * 2


def test_tables_are_for_people(vit, resnet, tmp_path, capsys):
    inspect(vit, "--num-images=3", f"--output={tmp_path}")
    said = capsys.readouterr()
    assert "blocks.0.attn" in said.out and "receptive field: 50 %, px" in said.out
    assert said.out.strip().splitlines()[-1] == f"insight: {tmp_path / 'insight.html'}"
    assert said.err == "vit_nano1 has no relative biases.\n"
    inspect(resnet, "--num-images=3", f"--output={tmp_path}")
    assert "resnet_nano1 has no attention that can be read." in capsys.readouterr().err


def test_crop_and_size_are_those_that_are_given_for_all_networks(vit, resnet, tmp_path, capsys):
    out = f"--output={tmp_path}"
    inspect(vit, "--crop=0.5", "--num-images=3", "--only=attention", out, "--json")
    (network,) = json.loads(capsys.readouterr().out)["networks"]
    trained = load_trained(vit)
    views = [own_images(trained.open_data(num_workers=0, eval_crop=crop), 3) for crop in (0.5, trained.crop_fraction)]
    distances = []
    for view in views:
        sums = torch.zeros(2)
        capture_attention(
            trained.network,
            trained.normalize(view),
            lambda layer, place, weights, sums=sums: sums.add_(attention_distance(weights, (7, 7), 4, 1).sum(0)),
        )
        distances.append((sums / 3).tolist())
    found = [row["distance_px"] for row in network["attention"]]
    assert found == pytest.approx(distances[0], rel=1e-5) and found != pytest.approx(distances[1], rel=1e-4)
    fields = []
    for sources in ((vit, "--beside", resnet), (resnet,)):
        inspect(*sources, "--crop=0.5", "--image-size=56", "--num-images=3", "--only=receptive_field", out, "--json")
        networks = json.loads(capsys.readouterr().out)["networks"]
        assert {network["image_size"] for network in networks} == {56}
        fields.append(networks[-1]["receptive_field"])
    assert fields[0] == fields[1]


def test_pages_name_runs_as_seen_from_here(vit, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(vit.parent)
    inspect(vit, "--only=filters", f"--output={tmp_path}", "--json")
    (network,) = json.loads(capsys.readouterr().out)["networks"]
    assert network["source"].startswith(f"{vit.name}: step-")
    assert str(vit.parent) not in (tmp_path / "insight.html").read_text()


def test_several_stand_side_by_side(vit, resnet, tmp_path, capsys):
    inspect(vit, "--beside", resnet, vit, "--num-images=2", f"--output={tmp_path}", "--json")
    told = json.loads(capsys.readouterr().out)
    names = [network["name"] for network in told["networks"]]
    assert names == [f"vit_nano1 {vit.name}", "resnet_nano1", f"vit_nano1 {vit.name} (2)"]
    page = (tmp_path / "insight.html").read_text()
    assert 'id="together"' in page and page.count('<section class="model">') == 3
    assert (tmp_path / "receptive_fields.png").is_file() and (tmp_path / "resnet_nano1" / "filters.png").is_file()


def test_images_may_be_files_and_shards(vit, tiny_shards, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        pixels = np.full((30, 40, 3), 40 * i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    out = f"--output={tmp_path / 'out'}"
    inspect(vit, "--images", folder, "--num-images=3", out, "--only=attention", "--json")
    assert json.loads(capsys.readouterr().out)["networks"][0]["num_images"] == 3
    page = (tmp_path / "out" / "insight.html").read_text()
    shown = [part.partition('"')[0] for part in page.split('<img class="grain" src="data:image/png;base64,')[1:]]
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in shown]
    assert [(each.shape, each.min(), each.max()) for each in pixels] == [
        ((28, 28, 3), grey, grey)
        for grey in (0, 80, 200)  # the first, a middle and the last one
    ]
    inspect(vit, "--images", tiny_shards / "test", "--num-images=4", out, "--only=attention", "--json")
    assert json.loads(capsys.readouterr().out)["networks"][0]["num_images"] == 4


def test_weights_of_elsewhere_need_images_for_some_parts(tmp_path, capsys):
    path = tmp_path / "weights.safetensors"
    write_state(random_model("vit_ti8", 5, 32, depth=1, width=16, num_heads=2, mlp_dim=16).state_dict(), path)
    given = (path, "--arch=vit_ti8", *(f"--option={o}" for o in ("depth=1", "width=16", "num_heads=2", "mlp_dim=16")))
    line = error_line(capsys, *given, f"--output={tmp_path}")
    assert line.endswith(
        "there is no run whose images could be taken; give --images, or --only filters,positions,biases"
    )
    inspect(*given, "--only=filters,positions", f"--output={tmp_path / 'out'}")
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["components.png", "filters.png", "insight.html", "insight.json", "positions.png"]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--only=attention",), "resnet_nano1 has no attention that can be read: leave attention out of --only"),
        (("--only=eyes",), "--only: 'eyes' is none of attention, filters, positions, biases, receptive_field"),
        (("--layers=0",), "--layers chooses among attention, and resnet_nano1 has no attention that can be read"),
        (("--layers=first",), "--layers=first is not whole numbers with commas between them, such as 0,5"),
        (("--heads=-1",), "--heads: -1 is below 0; heads are counted from 0"),
        (("--num-images=0",), "--num-images=0 is not at least 1"),
        (("--images", "/nowhere.png"), "/nowhere.png: no such file or folder; name images, folders, .tar shards or"),
    ],
)
def test_what_cannot_be_is_one_line(resnet, tmp_path, capsys, args, line):
    assert error_line(capsys, resnet, f"--output={tmp_path}", *args).startswith(line)
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_a_missing_source_and_a_broken_image_are_one_line(vit, tmp_path, capsys):
    assert "does not exist" in error_line(capsys, tmp_path / "nothing")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG nothing")
    line = error_line(capsys, vit, "--images", broken, f"--output={tmp_path / 'out'}")
    assert line.startswith(f"--images: {broken} can't be decoded")


def test_wandb_gets_the_page_and_the_figures(resnet, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "out"
    inspect(resnet, "--num-images=2", f"--output={out}", "--wandb=looks")
    (folder,) = out.glob("wandb/offline-run-*")
    assert capsys.readouterr().out.splitlines()[-1] == f"W&B: offline; show it with `wandb sync {folder}`"
    media = folder / "files" / "media"
    (page,) = media.glob("html/*.html")
    assert page.read_text() == (out / "insight.html").read_text()
    assert {path.name.partition("_0_")[0] for path in media.glob("images/figures/*.png")} == {
        *("filters", "components", "receptive_fields")
    }


def test_grey_images_stay_grey(tmp_path, tiny_shards, capsys):
    write_shards((tiny_sample(i, "train") for i in range(64)), tmp_path / "train")
    more = ("--data.channels=1", "--model.duration.samples=16", f"--data.train={tmp_path / 'train'}")
    run = train_tiny(tiny_shards, tmp_path, *more, options=TINY_VIT)
    capsys.readouterr()
    inspect(run, "--num-images=2", "--json", f"--output={tmp_path / 'out'}")
    assert json.loads(capsys.readouterr().out)["networks"][0]["num_images"] == 2
    with Image.open(io.BytesIO((tmp_path / "out" / "filters.png").read_bytes())) as picture:
        red, green, blue = (np.asarray(picture.convert("RGB"), int)[:, :, i] for i in range(3))
    assert np.abs(red - blue).max() < 40 and np.abs(red - green).max() < 40

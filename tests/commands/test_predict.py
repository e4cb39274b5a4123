"""`vitlight predict`: what evaluation sees, for anything that holds images; nothing lost where it is cut off."""

import csv
import fcntl
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import tiny_sample
from tests.trained_runs import TINY_VIT, train_tiny
from vitlight.cli import main
from vitlight.commands import predict as predict_command
from vitlight.prediction import predict as predict_module
from vitlight.prediction.images import EvaluationViews, ViewRequest
from vitlight.prediction.output import PredictionFile
from vitlight.prediction.sources import ImageSet
from vitlight.training.trained import load_trained

NAMES = ["upper left", "upper right", "lower, left", 'lower "right"']


@pytest.fixture(scope="module")
def run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tiny_shards, tmp_path_factory.mktemp("run"), options=TINY_VIT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven images in two folders, one of them of no image's bytes, and files that are no images."""
    folder = tmp_path / "images"
    (folder / "inner").mkdir(parents=True)
    for i in range(10):
        sample = tiny_sample(i, "test")
        (folder / ("inner" if i % 2 else "") / f"{i:02d}.{sample.extension}").write_bytes(sample.image)
    (folder / "inner" / "broken.png").write_bytes(b"\x89PNG nothing")
    (folder / "notes.md").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def predict(run: Path, *args: object, code: int = 0) -> None:
    assert main(["predict", str(run), *map(str, args)]) == code


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def expected_probabilities(run: Path) -> torch.Tensor:
    """Of the test set, (61, 4), from the evaluation's own batches."""
    trained = load_trained(run)
    batches = list(trained.open_data(eval_batch_size=16).test_dataloader())
    weights = torch.cat([batch["weight"] for batch in batches])
    return torch.cat([trained.logits(batch["image"]) for batch in batches]).softmax(1)[weights == 1]


def test_predictions_of_the_test_set_are_its_evaluation(run, tiny_shards, tmp_path, capsys):
    path = tmp_path / "predictions.csv"
    predict(run, tiny_shards / "test", "--output", path, "--probabilities=all", "--batch-size=16")
    rows = read_csv(path)
    result = json.loads((run / "result.json").read_text())
    right = [int(row["class_1"]) == int(row["image"].removeprefix("test/")) % 4 for row in rows]
    assert (len(rows), sum(right)) == (61, result["top1_count"])
    written = np.array([[row[f"p_{i}"] for i in range(4)] for row in rows], np.float32)
    assert np.array_equal(written, expected_probabilities(run).numpy())
    assert list(rows[0]) == [
        *("image", "shard", "class_1", "probability_1", "class_2", "probability_2", "class_3", "probability_3"),
        *("class_4", "probability_4", "p_0", "p_1", "p_2", "p_3", "error"),
    ]
    first = rows[0]
    ordered = [float(first[f"probability_{i}"]) for i in range(1, 5)]
    assert ordered == sorted(ordered, reverse=True)
    assert first["probability_1"] == first[f"p_{first['class_1']}"]
    assert {row["shard"] for row in rows} == {path.name for path in (tiny_shards / "test").glob("*.tar")}
    assert f"{path}: 61 of 61 images predicted" in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["predictions.csv"]


def test_views_are_the_pixels_of_the_evaluation(run, tiny_shards):
    data = load_trained(run).open_data(eval_batch_size=61)
    (batch,) = data.test_dataloader()
    images = ImageSet([str(tiny_shards / "test" / "*.tar")])
    views = EvaluationViews(28, 3, 0.875, images.open_store())
    got = views[ViewRequest(tuple(images))]
    assert got["errors"] == [None] * 61
    assert torch.equal(got["image"], batch["image"])
    assert got["image"].stride() == batch["image"].stride()


def test_workers_formats_and_ways_to_name_shards_give_the_same_rows(run, tiny_shards, tmp_path, capsys):
    shards = sorted(str(path) for path in (tiny_shards / "test").glob("*.tar"))
    common = ("--batch-size=16", "--probabilities=all")
    predict(run, tiny_shards / "test", "--output", tmp_path / "a.csv", *common)
    predict(run, *shards, "--output", tmp_path / "b.csv", "--num-workers=2", *common)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    (tmp_path / "list.txt").write_text("\n".join(f"pipe:cat {shard}" for shard in shards))
    predict(run, f"@{tmp_path / 'list.txt'}", "--output", tmp_path / "c.csv", *common)
    remote, local = read_csv(tmp_path / "c.csv"), read_csv(tmp_path / "a.csv")
    assert [{**row, "shard": ""} for row in remote] == [{**row, "shard": ""} for row in local]

    predict(run, tiny_shards / "test", "--output", tmp_path / "a.parquet", *common)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    columns = table.to_pydict()
    assert columns["image"] == [row["image"] for row in local]
    assert columns["class_1"] == [int(row["class_1"]) for row in local]
    assert columns["error"] == [None] * 61
    assert np.array_equal(np.array(columns["probabilities"], np.float32), expected_probabilities(run).numpy())
    assert json.loads(table.schema.metadata[b"vitlight"])["digest"] == load_trained(run).digest

    capsys.readouterr()
    predict(run, tiny_shards / "test", "--output=-", *common)
    assert capsys.readouterr().out == (tmp_path / "a.csv").read_text()


def test_what_cannot_be_read_is_a_row_with_an_error(run, folder, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    (tmp_path / "list.txt").write_text(f"{folder / '00.jpg'}\n{tmp_path / 'gone.png'}\n\n{folder / 'inner'}\n")
    path = tmp_path / "out.parquet"
    predict(run, f"@{tmp_path / 'list.txt'}", "--output", path, f"--class-names={names}", "--top=2", code=1)
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(path).to_pydict()
    assert list(columns) == [
        "image",
        *(f"{kind}_{i}" for i in (1, 2) for kind in ("class", "name", "probability")),
        "error",
    ]
    assert [Path(name).name for name in columns["image"]] == [
        *("00.jpg", "gone.png", "01.png", "03.jpg", "05.png", "07.png", "09.jpg", "broken.png")
    ]
    errors = columns["error"]
    assert errors[1] == "no such file or folder; name images, folders, .tar shards or @LIST"
    assert errors[-1].startswith("can't be decoded: ")
    assert [i for i, error in enumerate(errors) if error] == [1, 7]
    for i, number in enumerate(columns["class_1"]):
        assert (number is None, columns["name_1"][i]) == (i in (1, 7), None if number is None else NAMES[number])
    captured = capsys.readouterr()
    assert "6 of 8 images predicted; 2 could not be read, as column error says" in captured.err


def test_a_folder_is_every_image_in_it(run, folder, capsys):
    predict(run, folder, "--json", code=1)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["image"]).name for row in rows] == [
        *(
            "00.jpg",
            "02.png",
            "04.png",
            "06.jpg",
            "08.png",
            "01.png",
            "03.jpg",
            "05.png",
            "07.png",
            "09.jpg",
            "broken.png",
        )
    ]
    assert [row["error"] is None for row in rows] == [True] * 10 + [False]
    assert [entry["class"] for entry in rows[0]["top"]] != []
    assert sum(entry["probability"] for entry in rows[0]["top"]) == pytest.approx(1, abs=1e-6)
    predict(run, folder / "00.jpg", "--top=2")
    (line,) = capsys.readouterr().out.splitlines()
    best, second = rows[0]["top"][:2]
    assert line == (
        f"{folder / '00.jpg'}: class {best['class']} {best['probability']:.3f}, class {second['class']} "
        f"{second['probability']:.3f}"
    )


def test_the_same_command_goes_on_where_one_was_cut_off(run, tiny_shards, tmp_path, monkeypatch, capsys):
    arguments = (tiny_shards / "test", "--batch-size=8", "--output")
    predict(run, *arguments, tmp_path / "whole.csv")
    path, partial = tmp_path / "cut.csv", tmp_path / "cut.csv.partial"
    written, computed = [], []
    write, rows = PredictionFile.write, predict_module._rows

    def cut_off(self, predictions):
        write(self, predictions)
        written.append(len(predictions))
        if len(written) == 3:
            raise KeyboardInterrupt

    def count(items, *rest):
        computed.append(len(items))
        return rows(items, *rest)

    monkeypatch.setattr(PredictionFile, "write", cut_off)
    predict(run, *arguments, path, code=130)
    assert partial.read_text().count("\n") == 1 + 24
    assert not path.exists()
    with partial.open("ab") as file:
        file.write(b"test/00024,shard")  # a row that a kill tore
    monkeypatch.setattr(predict_module, "_rows", count)
    predict(run, *arguments, path)
    assert "goes on after 24 images" in capsys.readouterr().err
    assert (tmp_path / "whole.csv").read_bytes() == path.read_bytes()
    assert sum(computed) == 40  # 37 images in five batches, the last one filled up
    assert not partial.exists()


def test_what_is_left_of_another_command_is_kept_unless_told(run, tiny_shards, tmp_path, capsys):
    path, partial = tmp_path / "out.csv", tmp_path / "out.csv.partial"
    partial.write_text("image,class_1\none,1\n")
    predict(run, tiny_shards / "test", "--output", path, code=2)
    assert f"{partial} is what is left of another command" in capsys.readouterr().err
    assert partial.read_text() == "image,class_1\none,1\n"
    with partial.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        predict(run, tiny_shards / "test", "--output", path, "--overwrite", code=2)
    assert "is being written by another process" in capsys.readouterr().err
    predict(run, tiny_shards / "test", "--output", path, "--overwrite")
    assert len(read_csv(path)) == 61
    assert [each.name for each in tmp_path.iterdir()] == ["out.csv"]


def test_samples_without_labels_and_broken_tars(run, tiny_shards, tmp_path, capsys):
    with tarfile.open(tmp_path / "plain.tar", "w") as tar:
        for i in range(3):
            sample = tiny_sample(i, "test")
            info = tarfile.TarInfo(f"{i}.{sample.extension}")
            info.size = len(sample.image)
            tar.addfile(info, io.BytesIO(sample.image))
        info = tarfile.TarInfo("lonely.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    cut = tmp_path / "cut.tar"
    cut.write_bytes((tmp_path / "plain.tar").read_bytes()[:2000])
    predict(run, tmp_path / "plain.tar", cut, "--output", tmp_path / "out.csv", code=1)
    rows = read_csv(tmp_path / "out.csv")
    assert [(row["image"], row["shard"], bool(row["error"])) for row in rows] == [
        *((str(i), "plain.tar", False) for i in range(3)),
        ("lonely", "plain.tar", True),
        ("", "cut.tar", True),
    ]
    assert "the tar is cut off" in rows[-1]["error"]


def test_sigmoid_models_give_a_probability_for_each_class(tiny_shards, tmp_path, capsys):
    run = train_tiny(tiny_shards, tmp_path, "--model.loss=sigmoid", "--model.duration.samples=16", options=TINY_VIT)
    capsys.readouterr()
    predict(run, tiny_shards / "test", "--output=-", "--probabilities=all")
    captured = capsys.readouterr()
    assert "trained with loss sigmoid: each class has a probability of its own" in captured.err
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    trained = load_trained(run)
    (batch,) = trained.open_data(eval_batch_size=61).test_dataloader()
    expected = trained.logits(batch["image"]).sigmoid()[:, 2]
    np.testing.assert_allclose([float(row["p_2"]) for row in rows], expected, rtol=1e-6)


def test_bad_arguments_get_one_line(run, tiny_shards, folder, tmp_path, capsys):
    image, test = folder / "00.jpg", tiny_shards / "test"
    (tmp_path / "there.csv").write_text("kept")
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    (tmp_path / "empty").mkdir()
    shutil.copytree(test, tmp_path / "unfinished")
    (tmp_path / "unfinished" / ".unfinished").touch()
    cases: list[tuple[tuple[object, ...], str]] = [
        ((folder / "none.png",), "no such file or folder"),
        ((folder / "*.webp",), "no file matches this pattern"),
        ((tmp_path / "empty",), "no image and no .tar in this folder"),
        ((tmp_path / "unfinished",), "the writing of these shards was cut off"),
        ((f"@{tmp_path / 'none.txt'}",), "can't read this list of images"),
        (("https://example.com/cat.jpg",), "single images are not fetched"),
        ((tmp_path / "three.txt",), f"a list of images is given as @{tmp_path / 'three.txt'}"),
        ((image, "--image-size=30"), "image_size=30 is not a multiple of the patch size 4"),
        ((image, "--top=5"), "--top=5 is more than the 4 classes"),
        ((image, "--top=0"), "--top=0 is not at least 1"),
        ((image, f"--class-names={tmp_path / 'three.txt'}"), "names 3 classes, and the model has 4"),
        ((image, f"--class-names={tmp_path / 'none.txt'}"), "set --class-names"),
        ((image, f"--output={tmp_path / 'there.csv'}"), "is there already"),
        ((image, f"--output={tmp_path / 'x.txt'}"), "ends in '.txt'"),
        ((image, f"--output={tmp_path / 'no' / 'x.csv'}"), "there is no folder"),
        ((image, "--overwrite"), "--overwrite is about --output FILE"),
        ((image, "--output=-", "--json"), "give one of them"),
        ((image, "--device=tpu9"), "--device=tpu9: "),
        ((image, "--mean=0.5,0.5"), "--mean has 2 values for 3 channels"),
        ((image, "--std=0"), "--std=0 is not positive"),
        ((image, "--crop=1.5"), "--crop=1.5 is not in (0, 1]"),
        ((image, "--arch=vit_s16"), "arch=vit_s16 is not that of run"),
    ]
    for arguments, words in cases:
        capsys.readouterr()
        predict(run, *arguments, code=2)
        captured = capsys.readouterr()
        assert words in captured.err
        assert captured.err.count("\n") == 1
    assert (tmp_path / "there.csv").read_text() == "kept"


def test_images_are_decoded_by_as_many_processes_as_they_are_worth():
    assert predict_command._num_workers(2000) == 0
    assert 1 <= predict_command._num_workers(2001) <= 8
    assert predict_command._num_workers(None) == predict_command._num_workers(2001)


def test_a_grey_image_of_another_size_is_predicted(run, tmp_path, capsys):
    Image.fromarray(np.full((100, 40), 200, np.uint8)).save(tmp_path / "grey.gif")
    predict(run, tmp_path / "grey.gif", "--json")
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["error"] is None
    assert len(row["top"]) == 4

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.packed import encoded, read_packed
from vitlight.data.importers import pack
from vitlight.errors import InputError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = ["cat", "dog", "eel"]


def class_label(names: list[str]) -> dict[str, object]:
    return {"names": names, "_type": "ClassLabel"}


FEATURES = {"image": {"_type": "Image"}, "label": class_label(NAMES)}


def image(i: int) -> bytes:
    return encoded(np.full((6, 8, 3), i, np.uint8), "png" if i % 2 else "jpeg")


def write(path: Path, rows: range, features=FEATURES, columns=("image",), **changed: object) -> Path:
    """A file as `datasets` writes it: image {bytes, path}, integer labels, the features in the schema's metadata."""
    images = pyarrow.array(
        [{"bytes": image(i), "path": f"{i}.x"} for i in rows],
        pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
    )
    data = {**dict.fromkeys(columns, images), "label": pyarrow.array([i % 3 for i in rows], pyarrow.int64())} | changed
    metadata = {} if features is None else {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(data)
    parquet.write_table(table.replace_schema_metadata(metadata), path, row_group_size=4)
    return path


def test_a_hugging_face_dataset(tmp_path):
    data = tmp_path / "set/data"
    write(data / "train-00000-of-00002.parquet", range(0, 11))
    write(data / "train-00001-of-00002.parquet", range(11, 20))
    write(data / "validation-00000-of-00001-0123abcd.parquet", range(20, 25))
    write(data / "test-00000-of-00001.parquet", range(3), label=pyarrow.array([-1] * 3))
    indexes = pack(tmp_path / "set", tmp_path / "out", samples_per_shard=6)
    assert {name: index.class_names for name, index in indexes.items()} == {
        "train": ("cat", "dog", "eel"),
        "validation": ("cat", "dog", "eel"),
    }
    for split, rows in (("train", range(20)), ("validation", range(20, 25))):
        packed = read_packed(tmp_path / "out" / split)
        assert sorted(packed) == [f"{i:06d}" for i in range(len(rows))]
        for i, row in enumerate(rows):
            assert packed[f"{i:06d}"] == ("png" if row % 2 else "jpg", image(row), row % 3)
    assert not (tmp_path / "out/.staging").exists()


def test_a_hidden_test_split_is_left_out_by_name(tmp_path, capsys):
    write(tmp_path / "in/train.parquet", range(3))
    write(tmp_path / "in/test.parquet", range(3), label=pyarrow.array([-1] * 3))
    assert list(pack(tmp_path / "in", tmp_path / "out")) == ["train"]
    assert "test: every label is -1, so it has none; left out" in capsys.readouterr().err
    with pytest.raises(InputError, match="no split has labels"):
        pack(tmp_path / "in/test.parquet", tmp_path / "none")


def test_one_of_several_labels(tmp_path):
    features = {"img": {"_type": "Image"}, "label": class_label(NAMES), "coarse": class_label(["a", "b"])}
    coarse = pyarrow.array([i % 2 for i in range(6)])
    path = write(tmp_path / "train.parquet", range(6), features, ("img",), coarse=coarse)
    with pytest.raises(InputError, match=r"2 columns hold classes \(label, coarse\); name one with labels=COLUMN"):
        pack(path, tmp_path / "out")
    index = pack(path, tmp_path / "out", labels="coarse")["train"]
    assert index.class_names == ("a", "b")
    assert np.bincount(index.label).tolist() == [3, 3]
    with pytest.raises(InputError, match=r"labels=fine is no column of .*; it has img, label, coarse"):
        pack(path, tmp_path / "out2", labels="fine")


def test_without_metadata_of_datasets(tmp_path):
    path = write(tmp_path / "train.parquet", range(6), features=None)
    assert pack(path, tmp_path / "out")["train"].class_names is None
    assert pack(path, tmp_path / "named", classes="a,b,c")["train"].class_names == ("a", "b", "c")
    with pytest.raises(InputError, match=r"classes=a,b,c is for sources without names; .*\(Parquet files\) names"):
        pack(write(tmp_path / "test.parquet", range(6)), tmp_path / "out2", classes="a,b,c")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": pyarrow.array(["cat"] * 6)}, "column label is string; labels are whole numbers"),
        ({"label": pyarrow.array([0, 1, None, 1, 1, 1])}, "row 2 has no label; every row has"),
        ({"label": pyarrow.array([0, 1, 3, 1, 1, 1])}, "train: label 3 of '000002', but 3 classes are named"),
        ({"image": pyarrow.array([b"x"] * 6)}, r"0 columns are images \{bytes, path\}, of image, label"),
        (
            {"image": pyarrow.array([{"bytes": None, "path": "a"}] + [{"bytes": image(1), "path": "a"}] * 5)},
            "row 0 has no bytes in image",
        ),
        (
            {"image": pyarrow.array([{"bytes": image(i) if i != 5 else b"none", "path": "a"} for i in range(6)])},
            r"train\.parquet: row 5 can't be decoded: cannot identify image",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, changed, message):
    path = write(tmp_path / "train.parquet", range(6), **changed)
    with pytest.raises(InputError, match=message):
        pack(path, tmp_path / "out")


def test_files_that_are_missing_damaged_or_misnamed(tmp_path):
    write(tmp_path / "a/train-00000-of-00003.parquet", range(6))
    write(tmp_path / "a/train-00002-of-00003.parquet", range(6))
    with pytest.raises(InputError, match="file 00001 of train is missing"):
        pack(tmp_path / "a", tmp_path / "out")
    write(tmp_path / "e/train.parquet", range(0))
    with pytest.raises(InputError, match=r"train\.parquet: train has no row; remove its files"):
        pack(tmp_path / "e", tmp_path / "out")
    misnamed = write(tmp_path / "b/part-0.snappy.parquet", range(6))
    with pytest.raises(InputError, match=r"part-0\.snappy\.parquet: its name says no split; names are as train-00000"):
        pack(tmp_path / "b", tmp_path / "out")
    path = misnamed.rename(tmp_path / "b/train.parquet")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"train\.parquet can't be read"):
        pack(path, tmp_path / "out")


def test_without_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "train.parquet", range(6))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"Parquet needs pyarrow; install vitlight\[parquet\]"):
        pack(path, tmp_path / "out")

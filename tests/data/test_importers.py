import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.requirements import require
from vitlight.cli import main
from vitlight.data.batches import ImageBatches
from vitlight.data.importers import pack, read_idx
from vitlight.data.index import load_index
from vitlight.errors import InputError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx_folder(folder: Path, num_train=50, num_test=20, zipped=True) -> dict[str, np.ndarray]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", num_train), ("t10k", num_test)):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 9, 7), dtype=np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = rng.integers(0, 5, count, dtype=np.uint8)
    for name, array in arrays.items():
        data = idx_bytes(array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)
    return arrays


def decoded(index) -> dict[str, tuple[np.ndarray, int]]:
    images = ImageBatches(index, size=8, channels=3, seed=0, augmentation=None, eval_crop=1.0)
    return {index.key(i): (images.decode(i), int(index.label[i])) for i in range(len(index))}


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_packed_without_loss(tmp_path, zipped):
    arrays = write_idx_folder(tmp_path / "idx", zipped=zipped)
    indexes = pack(tmp_path / "idx", tmp_path / "out", samples_per_shard=16, classes="a,b,c,d,e")
    assert {name: len(index) for name, index in indexes.items()} == {"train": 50, "test": 20}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        index = load_index(tmp_path / "out" / split)
        assert index.digest == indexes[split].digest
        assert index.class_names == tuple("abcde")
        got = decoded(index)
        for i, (pixels, label) in enumerate(
            zip(arrays[f"{prefix}-images-idx3-ubyte"], arrays[f"{prefix}-labels-idx1-ubyte"], strict=True)
        ):
            assert np.array_equal(got[f"{i:06d}"][0][:, :, 0], pixels)
            assert got[f"{i:06d}"][1] == label
    assert len(indexes["train"].shards) == 4
    keys = [indexes["train"].key(i) for i in range(50)]
    assert keys != sorted(keys), "shuffled, so that a shard holds many classes"


def test_packing_twice_gives_the_same_bytes(tmp_path):
    write_idx_folder(tmp_path / "idx")
    for name in ("one", "two"):
        pack(tmp_path / "idx", tmp_path / name)
    tars = sorted((tmp_path / "one").rglob("*.tar"))
    assert len(tars) == 2
    for tar in tars:
        assert tar.read_bytes() == (tmp_path / "two" / tar.relative_to(tmp_path / "one")).read_bytes()


def save_image(path: Path, value: int, form: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((12, 10, 3), value, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    path.write_bytes(buffer.getvalue())


def make_image_folder(root: Path) -> Path:
    for name, value in (("cat", 10), ("dog", 100), ("eel.v2", 200)):
        for i in range(4):
            save_image(
                root / "train" / name / f"im.{i}.{'JPEG' if i % 2 else 'png'}", value + i, "jpeg" if i % 2 else "png"
            )
        save_image(root / "val" / name / "deep" / "a.webp", value, "webp")
    save_image(root / "train" / "cat" / "im.0.jpg", 14, "jpeg")  # the stem of another image
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    return root


def test_image_folders_keep_their_bytes(tmp_path, capsys):
    source = make_image_folder(tmp_path / "images")
    indexes = pack(source, tmp_path / "out")
    assert {name: len(index) for name, index in indexes.items()} == {"train": 13, "val": 3}
    assert indexes["val"].class_names == indexes["train"].class_names == ("cat", "dog", "eel.v2")
    keys = sorted(indexes["train"].key(i) for i in range(13))
    assert keys[:5] == ["cat/im_0-jpg", "cat/im_0-png", "cat/im_1", "cat/im_2", "cat/im_3"]
    stored = b"".join(path.read_bytes() for path in indexes["train"].shards)
    for path in (source / "train").rglob("im*"):
        assert path.read_bytes() in stored
    for key, (pixels, label) in decoded(indexes["train"]).items():
        assert label == ["cat", "dog", "eel.v2"].index(key.rpartition("/")[0])
        assert abs(int(pixels[0, 0, 0]) - [10, 100, 200][label]) <= 6
    assert "1 files are no images and were left out (1 .txt)" in capsys.readouterr().err


def test_class_folders_without_splits(tmp_path):
    make_image_folder(tmp_path / "images")
    index = pack(tmp_path / "images" / "train", tmp_path / "out")["train"]
    assert len(index) == 13


def test_bad_sources_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds neither class folders nor IDX files"):
        pack(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match=r"nowhere is not a folder"):
        pack(tmp_path / "nowhere", tmp_path / "out")
    source = make_image_folder(tmp_path / "images")
    with pytest.raises(InputError, match=r"--classes=a,b is for IDX files"):
        pack(source, tmp_path / "out1", classes="a,b")
    save_image(source / "val" / "fox" / "x.png", 1, "png")
    with pytest.raises(InputError, match=r"fox is not one of the 3 classes"):
        pack(source, tmp_path / "out2")
    broken = source / "train" / "dog" / "broken.png"
    broken.write_bytes((source / "train" / "dog" / "im.0.png").read_bytes()[:-30])
    with pytest.raises(InputError, match=r"broken\.png can't be decoded"):
        pack(source, tmp_path / "out3")


def test_bad_idx_files_are_named(tmp_path):
    write_idx_folder(tmp_path / "idx", zipped=False)
    labels = tmp_path / "idx" / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte has 49 bytes of data, its header says \(50,\)"):
        pack(tmp_path / "idx", tmp_path / "out")
    labels.write_bytes(idx_bytes(np.zeros(49)))
    with pytest.raises(InputError, match="don't belong together"):
        pack(tmp_path / "idx", tmp_path / "out")  # over the torn try
    labels.unlink()
    with pytest.raises(InputError, match="train-images-idx3-ubyte is there, but not its images or labels"):
        pack(tmp_path / "idx", tmp_path / "out")
    (tmp_path / "float").write_bytes(bytes([0, 0, 13, 1, 0, 0, 0, 0]))
    with pytest.raises(InputError, match="not an IDX file of unsigned bytes"):
        read_idx(tmp_path / "float")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"x" * 100)[:-9])
    with pytest.raises(InputError, match=r"cut\.gz can't be read"):
        read_idx(tmp_path / "cut.gz")


def test_a_finished_folder_is_kept_unless_told_otherwise(tmp_path, capsys):
    write_idx_folder(tmp_path / "idx")
    args = ["data", "pack", str(tmp_path / "idx"), str(tmp_path / "out"), "--samples-per-shard=32"]
    assert main(args) == 0
    assert "train: 50 images of 5 classes in 2 shards" in capsys.readouterr().out
    assert main(args) == 2
    assert "not empty" in capsys.readouterr().err
    assert main([*args, "--overwrite"]) == 0


def test_fashion_mnist_is_packed_whole(tmp_path):
    require(FASHION_MNIST.is_dir(), "Debian's package dataset-fashion-mnist")
    indexes = pack(FASHION_MNIST, tmp_path / "fm")
    assert {name: len(index) for name, index in indexes.items()} == {"train": 60_000, "test": 10_000}
    assert np.bincount(indexes["train"].label).tolist() == [6000] * 10
    pixels = read_idx(FASHION_MNIST / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(FASHION_MNIST / "t10k-labels-idx1-ubyte.gz")
    index = indexes["test"]
    images = ImageBatches(index, size=28, channels=1, seed=0, augmentation=None, eval_crop=1.0)
    for row in range(0, 10_000, 97):
        i = int(index.key(row))
        assert np.array_equal(images.decode(row)[:, :, 0], pixels[i])
        assert index.label[row] == labels[i]

import gzip
from pathlib import Path

import numpy as np
import pytest

from tests.data.packed import files_of, pixels_of, read_packed
from tests.requirements import require
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


def assert_packed(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    packed = read_packed(folder)
    assert sorted(packed) == [f"{i:06d}" for i in range(len(images))]
    for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        sample = packed[f"{i:06d}"]
        assert (sample.extension, sample.label) == ("png", label)
        assert np.array_equal(pixels_of(sample.image), pixels)


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_packed_without_loss(tmp_path, zipped):
    arrays = write_idx_folder(tmp_path / "idx", zipped=zipped)
    indexes = pack(tmp_path / "idx", tmp_path / "out", samples_per_shard=16, classes="a,b,c,d,e")
    for split, prefix in (("train", "train"), ("test", "t10k")):
        assert load_index(tmp_path / "out" / split).digest == indexes[split].digest
        assert indexes[split].class_names == tuple("abcde")
        assert_packed(
            tmp_path / "out" / split, arrays[f"{prefix}-images-idx3-ubyte"], arrays[f"{prefix}-labels-idx1-ubyte"]
        )
    assert len(indexes["train"].shards) == 4
    keys = list(read_packed(tmp_path / "out/train"))
    assert keys != sorted(keys), "shuffled, so that a shard holds many classes"


def test_class_names_from_a_file_and_too_few_of_them(tmp_path):
    write_idx_folder(tmp_path / "idx")
    (tmp_path / "names.txt").write_text("T-shirt/top\nTrouser, long\nc\nd\ne\n")
    index = pack(tmp_path / "idx", tmp_path / "out", classes=str(tmp_path / "names.txt"))["train"]
    assert index.class_names == ("T-shirt/top", "Trouser, long", "c", "d", "e")
    long = [f"{i}" + 300 * "n" for i in range(5)]
    assert pack(tmp_path / "idx", tmp_path / "long", classes=",".join(long))["train"].class_names == tuple(long)
    with pytest.raises(InputError, match=r"train: label 4 of '\d{6}', but 4 classes are named"):
        pack(tmp_path / "idx", tmp_path / "few", classes="a,b,c,d")


def test_packing_twice_gives_the_same_bytes(tmp_path):
    write_idx_folder(tmp_path / "idx")
    for name in ("one", "two"):
        pack(tmp_path / "idx", tmp_path / name)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert len([name for name in files_of(tmp_path / "one") if name.endswith(".tar")]) == 2


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
    (tmp_path / "cut.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(100)))[:-9])
    with pytest.raises(InputError, match=r"cut\.gz can't be read"):
        read_idx(tmp_path / "cut.gz")
    (tmp_path / "head").write_bytes(bytes([0, 0, 8, 3, 0, 0]))
    with pytest.raises(InputError, match="head ends within its header"):
        read_idx(tmp_path / "head")


def test_the_test_images_of_fashion_mnist_are_packed_whole(tmp_path):
    require(FASHION_MNIST.is_dir(), "Debian's package dataset-fashion-mnist")
    (tmp_path / "idx").mkdir()
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (tmp_path / "idx" / name).symlink_to(FASHION_MNIST / name)
    index = pack(tmp_path / "idx", tmp_path / "fm", processes=1)["test"]
    assert np.bincount(index.label).tolist() == [1000] * 10
    pixels = read_idx(FASHION_MNIST / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(FASHION_MNIST / "t10k-labels-idx1-ubyte.gz")
    for key, sample in list(read_packed(tmp_path / "fm/test").items())[::97]:
        assert np.array_equal(pixels_of(sample.image), pixels[int(key)])
        assert sample.label == labels[int(key)]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_npz_as_medmnist_has_it(tmp_path, save, channels):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 9), ("val", 3), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 8, 6, *channels), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 3, (count, 1), dtype=np.uint8)
    save(tmp_path / "med.npz", **arrays)
    assert list(pack(tmp_path / "med.npz", tmp_path / "out")) == ["train", "val", "test"]
    for split in ("train", "val", "test"):
        images = arrays[f"{split}_images"]
        images = images[..., 0] if channels == (1,) else images
        assert_packed(tmp_path / "out" / split, images, arrays[f"{split}_labels"][:, 0])


def test_npz_as_keras_has_it(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (7, 5, 5), dtype=np.uint8), rng.integers(0, 10, 7)
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in/mnist.npz", x_train=x, y_train=y, x_test=x[:3], y_test=y[:3])
    assert list(pack(tmp_path / "in", tmp_path / "out")) == ["train", "test"]
    assert_packed(tmp_path / "out/train", x, y)


def test_arrays_stay_lossless_where_they_are_resized(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8)[None, :, None], (48, 32, 3))
    np.savez(tmp_path / "a.npz", x_train=ramp[None], y_train=np.array([0]))
    pack(tmp_path / "a.npz", tmp_path / "out", short_side=8)
    (sample,) = read_packed(tmp_path / "out/train").values()
    assert sample.extension == "png"
    assert pixels_of(sample.image).shape == (12, 8, 3)
    # The middle of output column c is input column 4 c + 1.5; away from the edges a cubic keeps a ramp.
    assert np.abs(pixels_of(sample.image)[6, 2:6, 0] - 255 / 31 * (4 * np.arange(2, 6) + 1.5)).max() < 1.5


def arrays_of(**changed: np.ndarray) -> dict[str, np.ndarray]:
    return {"x_train": np.zeros((3, 4, 4), np.uint8), "y_train": np.zeros(3, np.int64)} | changed


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            arrays_of(x_train=np.zeros((3, 4, 4), np.float32)),
            "x_train is float32 in C order; images are uint8 in C order",
        ),
        (arrays_of(x_train=np.zeros((3, 4, 4), np.uint8, order="F")), "x_train is uint8 in Fortran order"),
        (arrays_of(x_train=np.zeros((3, 4, 4, 4), np.uint8)), r"images of shape \(3, 4, 4, 4\); understood are"),
        (arrays_of(x_train=np.zeros((0, 4, 4), np.uint8)), r"images of shape \(0, 4, 4\)"),
        (arrays_of(y_train=np.zeros(2, np.int64)), r"labels of shape \(2,\) for images of shape \(3, 4, 4\)"),
        (
            arrays_of(y_train=np.zeros((3, 14), np.int64)),
            r"labels of shape \(3, 14\) .*there is one label for an image",
        ),
        (arrays_of(y_train=np.zeros(3)), "labels are float64; a label is a whole number"),
        (arrays_of(y_train=np.array([0, -1, 0])), "train: label -1 of '000001'; labels start at 0"),
        (arrays_of(y_train=np.array([None] * 3)), "can't be read: Object arrays cannot be loaded"),
        ({"x_train": np.zeros(1)}, "holds x_train alone of x_train and y_train"),
        ({"weights": np.zeros(1)}, "holds weights; understood are train_images and train_labels, or x_train"),
    ],
)
def test_bad_npz_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message):
        pack(tmp_path / "a.npz", tmp_path / "out")


def test_a_damaged_npz_and_two_of_them(tmp_path):
    np.savez_compressed(
        tmp_path / "a.npz", **arrays_of(x_train=np.random.default_rng(0).integers(0, 256, (3, 40, 40), np.uint8))
    )
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[2000] ^= 255
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npz can't be read"):
        pack(tmp_path / "a.npz", tmp_path / "out")
    (tmp_path / "b.npz").write_bytes(b"none")
    with pytest.raises(InputError, match=r"holds 2 \.npz files \(a\.npz, b\.npz\); give one of them"):
        pack(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match=r"b\.npz can't be read"):
        pack(tmp_path / "b.npz", tmp_path / "out")

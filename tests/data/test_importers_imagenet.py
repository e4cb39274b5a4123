import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from tests.data.packed import encoded, files_of, pixels_of, read_packed
from tests.data.tars import write_tar
from vitlight.data.importers import pack
from vitlight.errors import InputError

# As in the real kit: ILSVRC2012_IDs are not in the order of the WordNet ids, and inner nodes follow with higher ones.
SYNSETS = [
    # ILSVRC2012_ID, WNID, words, num_children, num_train_images
    (1, "n02119789", "kit fox, Vulpes macrotis", 0, 3),
    (2, "n02100735", "English setter", 0, 2),
    (3, "n01440764", "tench, Tinca tinca", 0, 4),
    (4, "n00001740", "entity", 2, 0),
]
CLASS_NAMES = ("n01440764 tench, Tinca tinca", "n02100735 English setter", "n02119789 kit fox, Vulpes macrotis")
GROUND_TRUTH = [3, 1, 1, 2, 3]


def image(seed: int, form: str = "jpeg") -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 256, (20, 16, 3), dtype=np.uint8), form)


def train_images() -> dict[str, dict[str, bytes]]:
    """wnid -> {file: bytes}; one is a PNG by the name of a JPEG, as n02105855_2933.JPEG is."""
    images = {
        wnid: {f"{wnid}_{10 * i + 7}.JPEG": image(100 * number + i) for i in range(count)}
        for number, wnid, _, children, count in SYNSETS
        if children == 0
    }
    images["n02100735"]["n02100735_7.JPEG"] = image(1, "png")
    return images


def write_train(folder: Path, images: dict[str, dict[str, bytes]] | None = None) -> Path:
    inner = {
        wnid: write_tar(folder / "inner.tar", files.items()).read_bytes()
        for wnid, files in (images or train_images()).items()
    }
    (folder / "inner.tar").unlink()
    return write_tar(
        folder / "ILSVRC2012_img_train.tar", [(f"{wnid}.tar", data) for wnid, data in inner.items()], tarfile.GNU_FORMAT
    )


def write_val(folder: Path, numbers: range = range(1, 6)) -> Path:
    members = [(f"ILSVRC2012_val_{number:08d}.JPEG", image(1000 + number)) for number in numbers]
    return write_tar(folder / "ILSVRC2012_img_val.tar", members)


def write_devkit(folder: Path, synsets=SYNSETS, truth=GROUND_TRUTH) -> Path:
    dtype = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children", "num_train_images")]
    table = np.array(synsets, dtype=dtype).reshape(-1, 1)
    meta = io.BytesIO()
    savemat(meta, {"synsets": table})
    path = folder / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in (
            ("readme.txt", b"Development kit"),
            ("data/meta.mat", meta.getvalue()),
            ("data/ILSVRC2012_validation_ground_truth.txt", "".join(f"{number}\n" for number in truth).encode()),
        ):
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    folder = tmp_path / "imagenet"
    folder.mkdir()
    write_train(folder)
    write_val(folder)
    write_devkit(folder)
    return folder


def test_the_archives_are_packed_with_the_classes_that_everybody_has(archives, tmp_path):
    indexes = pack(archives, tmp_path / "out", samples_per_shard=4)
    assert {name: index.class_names for name, index in indexes.items()} == {"train": CLASS_NAMES, "val": CLASS_NAMES}
    labels = {"n01440764": 0, "n02100735": 1, "n02119789": 2}
    train = read_packed(tmp_path / "out/train")
    assert len(train) == 9
    for wnid, files in train_images().items():
        for name, data in files.items():
            sample = train[f"{wnid}/{name.removesuffix('.JPEG')}"]
            assert (sample.image, sample.label) == (data, labels[wnid])
            assert sample.extension == ("png" if data.startswith(b"\x89PNG") else "jpg")
    val = read_packed(tmp_path / "out/val")
    assert {key: sample.label for key, sample in val.items()} == {
        "n01440764/ILSVRC2012_val_00000001": 0,
        "n02119789/ILSVRC2012_val_00000002": 2,
        "n02119789/ILSVRC2012_val_00000003": 2,
        "n02100735/ILSVRC2012_val_00000004": 1,
        "n01440764/ILSVRC2012_val_00000005": 0,
    }
    assert np.array_equal(pixels_of(val["n02100735/ILSVRC2012_val_00000004"].image), pixels_of(image(1004)))
    described = json.loads((tmp_path / "out/train/dataset.json").read_text())
    assert described["num_samples_per_class"] == dict(zip(CLASS_NAMES, [4, 2, 3], strict=True))


def test_extracted_folders_give_the_same_shards(archives, tmp_path):
    for wnid, files in train_images().items():
        (tmp_path / "folders/train" / wnid).mkdir(parents=True)
        for name, data in files.items():
            (tmp_path / "folders/train" / wnid / name).write_bytes(data)
    pack(archives, tmp_path / "a", short_side=12)
    pack(tmp_path / "folders", tmp_path / "b", short_side=12)
    shards = {name: data for name, data in files_of(tmp_path / "a/train").items() if name.endswith(".tar")}
    assert shards == {name: data for name, data in files_of(tmp_path / "b/train").items() if name.endswith(".tar")}


def test_training_images_alone(archives, tmp_path):
    named = pack(archives / "ILSVRC2012_img_train.tar", tmp_path / "named")
    assert {name: index.class_names for name, index in named.items()} == {"train": CLASS_NAMES}
    (archives / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    index = pack(archives / "ILSVRC2012_img_train.tar", tmp_path / "bare")["train"]
    assert index.class_names == ("n01440764", "n02100735", "n02119789")
    assert index.digest == named["train"].digest


def test_validation_images_alone(archives, tmp_path):
    index = pack(archives / "ILSVRC2012_img_val.tar", tmp_path / "out")["val"]
    assert np.bincount(index.label).tolist() == [2, 1, 2]
    (archives / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(
        InputError, match=r"img_val\.tar: its classes are in ILSVRC2012_devkit_t12\.tar\.gz, which is not in"
    ):
        pack(archives / "ILSVRC2012_img_val.tar", tmp_path / "out2")


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


def test_archives_that_are_not_whole(archives, tmp_path):
    train, val = archives / "ILSVRC2012_img_train.tar", archives / "ILSVRC2012_img_val.tar"
    whole = train.read_bytes()
    for end in (len(whole) // 2, len(whole) // 2 + 300):
        cut(train, end)
        with pytest.raises(InputError, match=r"img_train\.tar.* (is cut off or damaged|can't be read)"):
            pack(archives, tmp_path / "out")
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        second = tar.getmembers()[1].offset
    train.write_bytes(whole[:second])  # between two classes, where tarfile sees a fine end
    with pytest.raises(InputError, match=r"img_train\.tar is cut off or damaged"):
        pack(archives, tmp_path / "out")
    images = train_images()
    del images["n01440764"]["n01440764_7.JPEG"]
    write_train(archives, images)
    with pytest.raises(InputError, match=r"holds 3 images of n01440764, the devkit says 4; is the archive whole\?"):
        pack(archives, tmp_path / "out")
    write_train(archives, {**train_images(), "n09999999": {"n09999999_1.JPEG": image(0)}})
    with pytest.raises(InputError, match=r"holds n09999999\.tar, which is no class of the devkit"):
        pack(archives, tmp_path / "out")
    train.unlink()
    write_val(archives, range(1, 5))
    with pytest.raises(InputError, match=r"img_val\.tar holds 4 images, the devkit says 5"):
        pack(archives, tmp_path / "out")
    write_val(archives, range(1, 7))
    with pytest.raises(InputError, match=r"holds ILSVRC2012_val_00000006\.JPEG, the devkit knows 5 images"):
        pack(archives, tmp_path / "out")
    write_val(archives)
    cut(val, 3000)
    with pytest.raises(InputError, match=r"img_val\.tar (is cut off or damaged|can't be read)"):
        pack(archives, tmp_path / "out")


@pytest.mark.parametrize(
    ("synsets", "truth", "message"),
    [
        (SYNSETS[1:], GROUND_TRUTH, r"data/meta\.mat must number its 2 classes from 1 on, each once"),
        (SYNSETS, [*GROUND_TRUTH, 4], "the ground truth has class 4; there are 1 to 3"),
        (SYNSETS, ["x"], "the classes can't be read: ValueError"),
    ],
)
def test_a_devkit_that_does_not_fit(archives, tmp_path, synsets, truth, message):
    write_devkit(archives, synsets, truth)
    with pytest.raises(InputError, match=message):
        pack(archives, tmp_path / "out")


def test_an_image_that_is_cut_off_is_named_with_its_archive(archives, tmp_path):
    images = train_images()
    images["n01440764"]["n01440764_17.JPEG"] = image(5)[:-200]
    write_train(archives, images)
    with pytest.raises(InputError, match=r"img_train\.tar: n01440764/n01440764_17 can't be decoded"):
        pack(archives, tmp_path / "out")

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.data.packed import pixels_of, read_packed
from vitlight.data.importers import pack
from vitlight.data.importers.cifar import load_pickle
from vitlight.errors import InputError

PLANES = np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)  # as CIFAR: channels first
COARSE_NAMES, FINE_NAMES = ["fish", "tree"], ["trout", "oak", "ray", "pine"]


def as_python_2(batch: dict[str, object]) -> bytes:
    """Protocol 2 with byte strings for str, as the original files have them: BINSTRING takes the place of unicode."""
    data = pickle.dumps(batch, protocol=2)
    for key in batch:
        unicode_key = b"X" + len(key).to_bytes(4, "little") + key.encode()
        data = data.replace(unicode_key, b"U" + bytes([len(key)]) + key.encode())
    return data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar10() -> dict[str, bytes]:
    files = {"batches.meta": as_python_2({"label_names": ["cat", "dog", "eel"]})}
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = slice(10 * i, 10 * i + 10)
        labels = [(10 * i + j) % 3 for j in range(10)]
        files[name] = as_python_2({"data": PLANES[rows].reshape(10, -1), "labels": labels, "batch_label": name})
    return files


def cifar100() -> dict[str, bytes]:
    files = {"meta": as_python_2({"fine_label_names": FINE_NAMES, "coarse_label_names": COARSE_NAMES})}
    for name, rows in (("train", slice(0, 50)), ("test", slice(50, 60))):
        fine = [i % 4 for i in range(rows.start, rows.stop)]
        batch = {"data": PLANES[rows].reshape(-1, 3072), "fine_labels": fine, "coarse_labels": [i % 2 for i in fine]}
        files[name] = as_python_2(batch)
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def write_archive(path: Path, layout: str, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{layout}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def assert_packed(folder: Path, planes: np.ndarray, labels: list[int]) -> None:
    packed = read_packed(folder)
    assert len(packed) == len(planes)
    for i, label in enumerate(labels):
        sample = packed[f"{i:06d}"]
        assert sample.label == label
        assert np.array_equal(pixels_of(sample.image), planes[i].transpose(1, 2, 0))


@pytest.mark.parametrize("form", ["folder", "folder around it", "archive", "folder around the archive"])
def test_cifar10(tmp_path, form):
    if "archive" in form:
        source = write_archive(tmp_path / "in/cifar-10-python.tar.gz", "cifar-10-batches-py", cifar10())
    else:
        source = write_files(tmp_path / "in/cifar-10-batches-py", cifar10())
    indexes = pack(source.parent if "around" in form else source, tmp_path / "out", samples_per_shard=16)
    assert {name: index.class_names for name, index in indexes.items()} == dict.fromkeys(
        ("train", "test"), ("cat", "dog", "eel")
    )
    assert_packed(tmp_path / "out/train", PLANES[:50], [i % 3 for i in range(50)])
    assert_packed(tmp_path / "out/test", PLANES[50:], [i % 3 for i in range(50, 60)])


@pytest.mark.parametrize(("labels", "names"), [(None, FINE_NAMES), ("fine", FINE_NAMES), ("coarse", COARSE_NAMES)])
def test_cifar100_by_fine_or_coarse_labels(tmp_path, labels, names):
    source = write_files(tmp_path / "cifar-100-python", cifar100())
    indexes = pack(source, tmp_path / "out", labels=labels)
    assert indexes["train"].class_names == tuple(names)
    assert_packed(tmp_path / "out/train", PLANES[:50], [i % len(names) for i in range(50)])


def test_labels_that_there_are_not(tmp_path):
    with pytest.raises(InputError, match=r"labels=middle is neither fine \(100 classes\) nor coarse \(20 classes\)"):
        pack(write_files(tmp_path / "cifar-100-python", cifar100()), tmp_path / "out", labels="middle")
    with pytest.raises(
        InputError, match=r"labels=fine chooses among kinds of labels; .*\(CIFAR-10 pickles\) has one kind"
    ):
        pack(write_files(tmp_path / "cifar-10-batches-py", cifar10()), tmp_path / "out", labels="fine")


def batch(num_values: int, labels: list[object]) -> bytes:
    return pickle.dumps({"data": np.zeros((2, num_values), np.uint8), "labels": labels}, protocol=2)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_malicious_pickle_is_refused(tmp_path, protocol):
    files = {**cifar10(), "data_batch_3": pickle.dumps({"data": Malicious(tmp_path / "owned")}, protocol=protocol)}
    with pytest.raises(
        InputError, match=r"data_batch_3 was not read: it asks for posix\.system; only arrays and plain"
    ):
        pack(write_files(tmp_path / "cifar-10-batches-py", files), tmp_path / "out")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["builtins.eval", "numpy.load", "numpy.core.multiarray.fromfile", "builtins.getattr"])
def test_a_pickle_can_name_nothing_else(name):
    module, _, attribute = name.rpartition(".")
    data = f"c{module}\n{attribute}\n(S'1'\ntR.".encode()
    with pytest.raises(InputError, match=f"it asks for {name}"):
        load_pickle(data, Path("x"))


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_that_python_3_wrote(protocol):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    loaded = load_pickle(pickle.dumps({"data": array, "labels": [1, 2]}, protocol=protocol), Path("x"))
    assert np.array_equal(loaded["data"], array)
    assert loaded["labels"] == [1, 2]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("test_batch", b"\x80\x02}", r"test_batch is no pickle that can be read: EOFError"),
        ("test_batch", pickle.dumps([1]), "test_batch holds a list; a pickle of CIFAR holds a dict"),
        ("test_batch", batch(9, [0, 0]), "is no uint8 array"),
        ("test_batch", batch(3072, [0, "1"]), "no list of whole"),
        ("test_batch", batch(3072, [0]), r"labels of shape \(1,\)"),
        ("batches.meta", pickle.dumps({}), r"batches\.meta has no list label_names"),
    ],
)
def test_bad_pickles_are_named(tmp_path, name, data, message):
    source = write_files(tmp_path / "cifar-10-batches-py", {**cifar10(), name: data})
    with pytest.raises(InputError, match=message):
        pack(source, tmp_path / "out")


def test_missing_files_are_named(tmp_path):
    files = cifar10()
    del files["data_batch_4"]
    with pytest.raises(InputError, match=r"data_batch_4 is missing beside batches\.meta"):
        pack(write_files(tmp_path / "in/cifar-10-batches-py", files), tmp_path / "out")
    archive = write_archive(tmp_path / "a/c.tar.gz", "cifar-10-batches-py", files)
    with pytest.raises(InputError, match=r"c\.tar\.gz: data_batch_4 is missing; is the archive whole\?"):
        pack(archive, tmp_path / "out")
    whole = write_archive(tmp_path / "a/d.tar.gz", "cifar-10-batches-py", cifar10())
    whole.write_bytes(whole.read_bytes()[:-20_000])
    with pytest.raises(InputError, match=r"d\.tar\.gz can't be read"):
        pack(whole, tmp_path / "out")

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.packed import encoded, files_of, pixels_of, read_packed
from vitlight.cli import main
from vitlight.data.importers import pack
from vitlight.data.index import load_index
from vitlight.errors import InputError

LISTED = ["num_samples", "num_undecodable", "num_samples_per_class"]


def save(path: Path, image: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)


def plain(value: int, form: str) -> bytes:
    return encoded(np.full((12, 10, 3), value, np.uint8), form)


def make_image_folder(root: Path) -> Path:
    for name, value in (("cat", 10), ("dog", 100), ("eel.v2", 200)):
        for i in range(4):
            form, suffix = ("jpeg", "JPEG") if i % 2 else ("png", "png")
            save(root / "train" / name / f"im.{i}.{suffix}", plain(value + i, form))
        save(root / "val" / name / "deep" / "a.webp", plain(value, "webp"))
    save(root / "train" / "cat" / "im.0.jpg", plain(14, "jpeg"))  # the stem of another image
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    return root


def make_class_folders(root: Path, num_images: int, side: int) -> Path:
    rng = np.random.default_rng(0)
    for i in range(num_images):
        coarse = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        save(root / "abc"[i % 3] / f"{i:04d}.jpg", encoded(coarse.repeat(8, 0).repeat(8, 1), "jpeg", quality=90))
    return root


def test_image_folders_keep_their_bytes(tmp_path, capsys):
    source = make_image_folder(tmp_path / "images")
    indexes = pack(source, tmp_path / "out")
    assert {name: len(index) for name, index in indexes.items()} == {"train": 13, "val": 3}
    assert indexes["val"].class_names == indexes["train"].class_names == ("cat", "dog", "eel.v2")
    train = read_packed(tmp_path / "out/train")
    assert sorted(train)[:5] == ["cat/im_0-jpg", "cat/im_0-png", "cat/im_1", "cat/im_2", "cat/im_3"]
    assert train["dog/im_1"].image == (source / "train/dog/im.1.JPEG").read_bytes()
    assert train["cat/im_0-jpg"].image == (source / "train/cat/im.0.jpg").read_bytes()
    for key, sample in train.items():
        assert sample.label == ["cat", "dog", "eel.v2"].index(key.rpartition("/")[0])
    assert read_packed(tmp_path / "out/val")["dog/deep/a"].extension == "webp"
    assert "1 files are no images of a class and were left out (1 .txt)" in capsys.readouterr().err


def test_class_folders_without_splits(tmp_path):
    make_image_folder(tmp_path / "images")
    assert list(pack(tmp_path / "images" / "train", tmp_path / "out")) == ["train"]
    assert len(load_index(tmp_path / "out/train")) == 13


def test_folders_beside_the_splits_are_named(tmp_path, capsys):
    source = make_image_folder(tmp_path / "images")
    (source / "boxes").mkdir()
    assert list(pack(source, tmp_path / "out")) == ["train", "val"]
    assert "boxes is beside train, val and was left out" in capsys.readouterr().err


def test_the_order_is_that_of_the_hashes_or_of_the_source(tmp_path):
    source = make_class_folders(tmp_path / "images", 60, 8)
    keys = {}
    for name, options in (("0", {}), ("1", {"seed": 1}), ("none", {"shuffle": False})):
        pack(source, tmp_path / name, samples_per_shard=16, **options)
        keys[name] = list(read_packed(tmp_path / name / "train"))
    by_hash = [hashlib.blake2b(key.encode(), digest_size=8).digest()[::-1] for key in keys["0"]]
    assert by_hash == sorted(by_hash)
    assert keys["none"] == sorted(keys["none"])
    assert len({tuple(order) for order in keys.values()}) == 3
    assert {tuple(sorted(order)) for order in keys.values()} == {tuple(keys["none"])}


def test_what_was_packed_is_described(tmp_path):
    pack(make_image_folder(tmp_path / "images"), tmp_path / "out", short_side=6, quality=80)
    described = json.loads((tmp_path / "out/train/dataset.json").read_text())
    assert [described[name] for name in LISTED] == [13, 0, {"cat": 5, "dog": 4, "eel.v2": 4}]
    settings = {
        "source": "class folders",
        "source_name": "images",
        "short_side": 6,
        "quality": 80,
        "samples_per_shard": 2000,
        "seed": 0,
    }
    assert settings.items() <= described["settings"].items()
    assert (tmp_path / "out/train/classes.txt").read_text() == "cat\ndog\neel.v2\n"
    for sample in read_packed(tmp_path / "out/train").values():
        assert pixels_of(sample.image).shape == (7, 6, 3)
    assert not [name for name in files_of(tmp_path / "out") if name.startswith(".") or "/." in name], "marks, staging"


def test_sources_that_are_not_understood(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"empty holds nothing that can be packed; understood are folders of .* and \.npz"
    ):
        pack(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match=r"nowhere does not exist; understood are"):
        pack(tmp_path / "nowhere", tmp_path / "out")
    source = make_image_folder(tmp_path / "images")
    with pytest.raises(InputError, match=r"classes=a,b is for sources without names; .*images \(class folders\) names"):
        pack(source, tmp_path / "out", classes="a,b")
    with pytest.raises(
        InputError, match=r"labels=fine chooses among kinds of labels; .* \(class folders\) has one kind"
    ):
        pack(source, tmp_path / "out", labels="fine")
    with pytest.raises(InputError, match=r"images/out is inside the source .*images; choose a destination outside it"):
        pack(source, source / "out")
    assert not (tmp_path / "out").exists()
    save(source / "val" / "fox" / "x.png", plain(1, "png"))
    with pytest.raises(InputError, match=r"fox is not one of the 3 classes"):
        pack(source, tmp_path / "out")
    with pytest.raises(InputError, match=r"holds no image \(bmp, jpeg, jpg"):
        (tmp_path / "bare/class").mkdir(parents=True)
        pack(tmp_path / "bare", tmp_path / "out")
    for name in ("a.b.png", "a_b.png"):
        save(tmp_path / "twice/class" / name, plain(1, "png"))
    with pytest.raises(InputError, match=r"a\.b\.png and a_b\.png both get the key 'a_b-png'; rename one"):
        pack(tmp_path / "twice", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 0}, "short_side=0 is not at least 1"),
        ({"samples_per_shard": 0}, "samples_per_shard=0 is not at least 1"),
        ({"processes": 0}, "processes=0 is not at least 1"),
        ({"seed": -1}, "seed=-1 is not at least 0"),
        ({"max_undecodable": -1}, "max_undecodable=-1 is not at least 0"),
        ({"quality": 101}, "quality=101 is not from 1 to 100"),
    ],
)
def test_settings_out_of_range(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        pack(tmp_path, tmp_path / "out", **options)


def test_images_that_cannot_be_decoded_are_named_and_counted(tmp_path, capsys):
    source = make_class_folders(tmp_path / "images", 12, 16)
    for name in ("a/0003.jpg", "b/0004.jpg"):
        (source / name).write_bytes((source / name).read_bytes()[:-30])
    with pytest.raises(
        InputError, match=r"000[34]\.jpg can't be decoded: .*; mend it or remove it, or raise max_undecodable=0"
    ):
        pack(source, tmp_path / "out", samples_per_shard=4)
    with pytest.raises(InputError, match="can't be decoded"):
        pack(source, tmp_path / "out", samples_per_shard=4, max_undecodable=1)
    capsys.readouterr()
    assert len(pack(source, tmp_path / "out", samples_per_shard=4, max_undecodable=2)["train"]) == 10
    described = json.loads((tmp_path / "out/train/dataset.json").read_text())
    assert [described[name] for name in LISTED] == [10, 2, {"a": 3, "b": 3, "c": 4}]
    pack(source, tmp_path / "again", samples_per_shard=4, max_undecodable=2)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "out")
    said = capsys.readouterr().err
    assert all(f"left out: {source}/{name} can't be decoded" in said for name in ("a/0003.jpg", "b/0004.jpg"))


def test_the_command_line(tmp_path, capsys):
    source = make_image_folder(tmp_path / "images")
    args = [
        "data",
        "pack",
        str(source),
        str(tmp_path / "out"),
        "--samples-per-shard=8",
        "--short-side=6",
        "--no-shuffle",
    ]
    assert main(args) == 0
    assert "train: 13 images of 3 classes in 2 shards" in capsys.readouterr().out
    assert pixels_of(read_packed(tmp_path / "out/train")["cat/im_1"].image).shape == (7, 6, 3)
    assert main(args) == 2
    assert "not empty; choose another destination, or overwrite" in capsys.readouterr().err
    assert main([*args, "--overwrite"]) == 0


def test_an_unfinished_try_of_other_settings_is_not_mixed_in(tmp_path):
    source = make_class_folders(tmp_path / "images", 12, 16)
    broken = source / "b/0004.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-30])
    options = {"samples_per_shard": 1, "shuffle": False, "processes": 1}
    with pytest.raises(InputError, match="can't be decoded"):
        pack(source, tmp_path / "out", **options)
    assert len(list((tmp_path / "out/train").glob("*.tar"))) == 5
    with pytest.raises(InputError, match="the writing of these shards was cut off"):
        load_index(tmp_path / "out/train")
    with pytest.raises(
        InputError, match="shards with quality=95 were begun here, this is quality=90; repeat the settings"
    ):
        pack(source, tmp_path / "out", **options, quality=90)
    broken.write_bytes(whole)
    with pytest.raises(InputError, match=r"shards with source_fingerprint=.* were begun here"):
        pack(source, tmp_path / "out", **options)
    assert len(pack(source, tmp_path / "out", **options, overwrite=True)["train"]) == 12


def test_a_finished_split_is_kept_where_the_next_one_stopped(tmp_path):
    source = make_image_folder(tmp_path / "images")
    broken = source / "val/dog/deep/a.webp"
    broken.write_bytes(broken.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"a\.webp can't be decoded"):
        pack(source, tmp_path / "out")
    (shard,) = (tmp_path / "out/train").glob("*.tar")
    written = shard.stat().st_mtime_ns
    indexes = pack(
        source, tmp_path / "out", max_undecodable=1
    )  # how many are allowed doesn't change those that are done
    assert shard.stat().st_mtime_ns == written
    assert {name: len(index) for name, index in indexes.items()} == {"train": 13, "val": 2}


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_run_goes_on_and_gives_the_same_bytes_with_any_number_of_processes(tmp_path):
    source = make_class_folders(tmp_path / "images", 300, 256)
    out = tmp_path / "out"
    args = ["data", "pack", str(source), str(out), "--samples-per-shard=2", "--short-side=64"]
    code = f"from vitlight.cli import main\nif __name__ == '__main__': main({[*args, '--processes=2']!r})"
    (tmp_path / "run.py").write_text(code)
    running = subprocess.Popen([sys.executable, tmp_path / "run.py"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(out.glob("train/*.tar"))) < 20:
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.005)
    workers = children_of(running.pid)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "the workers outlive their parent"
        time.sleep(0.01)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("train/*.tar")}
    assert 20 <= len(finished) < 150, "killed on the way"
    assert main([*args, "--processes=1"]) == 0
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items()), "finished shards are kept"
    pack(source, tmp_path / "whole", samples_per_shard=2, short_side=64, processes=1)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert len(read_packed(out / "train")) == 300

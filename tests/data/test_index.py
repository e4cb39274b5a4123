import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.data.tars import image_bytes, write_tar
from vitlight.data import index as index_module
from vitlight.data.cache import ShardCache
from vitlight.data.columns import find_repeated
from vitlight.data.index import build_index, load_index, resolve_shards
from vitlight.data.labels import LabelSource
from vitlight.data.scan import scan_shard
from vitlight.errors import InputError


def write_shards_of(folder: Path, sizes: list[int], classes: int = 3) -> list[Path]:
    """Tars s-0.tar, s-1.tar, ... with so many samples; keys count on, labels go round."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, n = [], 0
    for i, size in enumerate(sizes):
        members = []
        for j in range(n, n + size):
            members += [(f"d/{j:03d}.cls", b"%d" % (j % classes)), (f"d/{j:03d}.png", image_bytes(j))]
        shards.append(write_tar(folder / f"s-{i}.tar", members))
        n += size
    return shards


def columns(index):
    names = ("shard_start", "offset", "size", "label", "key_hash", "num_bytes", "class_counts")
    return {name: getattr(index, name).tolist() for name in names}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_every_image_lies_where_the_index_says(tmp_path, num_processes):
    shards = write_shards_of(tmp_path, [5, 0, 1, 4])
    index = build_index(shards, tmp_path / "index", num_processes=num_processes)
    assert len(index) == 10
    assert index.shards == tuple(map(str, shards))
    assert index.shard_start.tolist() == [0, 5, 5, 6, 10]
    assert index.shard_of(np.arange(10)).tolist() == [0] * 5 + [2] + [3] * 4
    assert index.num_bytes.tolist() == [shard.stat().st_size for shard in shards]
    assert index.label.tolist() == [i % 3 for i in range(10)]
    assert (index.num_classes, index.class_names, index.class_counts.tolist()) == (3, None, [4, 3, 3])
    assert (index.is_multi_label, index.shard_digests) == (False, None)
    assert [labels.tolist() for labels in index.labels_of(np.array([7, 0]))] == [[1], [0]]
    for i in range(10):
        data = shards[index.shard_of(np.array([i]))[0]].read_bytes()
        assert data[int(index.offset[i]) :][: int(index.size[i])] == image_bytes(i)
        assert index.key(i) == f"d/{i:03d}"
        assert int(index.key_hash[i]).to_bytes(8, "little") == hashlib.blake2b(b"d/%03d" % i, digest_size=8).digest()
    dtypes = [getattr(index, name).dtype for name in ("offset", "size", "label", "key_hash", "key_offset")]
    assert dtypes == [np.uint64, np.uint32, np.int32, np.uint64, np.uint32]
    assert sum(dtype.itemsize for dtype in dtypes) == 28
    assert isinstance(index.label, np.memmap)
    assert not index.label.flags.writeable


def test_one_process_and_two_write_the_same_index(tmp_path):
    shards = write_shards_of(tmp_path, [2] * 7)
    folders = []
    for num_processes in (1, 2):
        build_index(shards, tmp_path / str(num_processes), num_processes=num_processes)
        (folder,) = (tmp_path / str(num_processes)).iterdir()
        folders.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert folders[0] == folders[1]


def test_the_digest_is_of_the_data_and_not_of_its_place(tmp_path):
    first = load_index(write_shards_of(tmp_path / "a", [3, 2])[0].parent)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert load_index(tmp_path / "b").digest == first.digest
    assert load_index(tmp_path / "b", tmp_path / "elsewhere").digest == first.digest
    assert load_index(write_shards_of(tmp_path / "labels", [3, 2], classes=2)[0].parent).digest != first.digest
    assert load_index(write_shards_of(tmp_path / "cut", [2, 3])[0].parent).digest != first.digest


def test_every_form_of_source(tmp_path):
    shards = write_shards_of(tmp_path / "x", [1, 1, 1])
    for source in (tmp_path / "x", f"{tmp_path}/x", f"{tmp_path}/x/s-{{0..2}}.tar", f"{tmp_path}/x/s-*.tar"):
        assert load_index(source).shards == tuple(map(str, shards))
    assert load_index(f"{tmp_path}/x/s-{{0..1}}.tar").shards == tuple(map(str, shards[:2]))
    assert len(load_index(shards[1])) == 1
    assert len(list((tmp_path / "x/index").iterdir())) == 3, (
        "all, the first two, and the second have theirs side by side"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.tar", r"none.tar: can't read this shard: No such file"),
        ("x/s-{0..3}.tar", r"s-3.tar: can't read this shard: No such file"),
        ("x/s-{0..3.tar", r"the braces of this pattern don't match"),
        ("x/t-*.tar", r"no file matches this pattern"),
        ("empty", r"empty: no \*.tar in this folder$"),
        (".", r"no \*.tar in this folder; did you mean .*/x\?"),
    ],
)
def test_a_source_that_names_nothing(tmp_path, source, message):
    write_shards_of(tmp_path / "x", [1, 1, 1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        load_index(f"{tmp_path}/{source}")


def test_an_index_is_built_once(tmp_path):
    write_shards_of(tmp_path, [2, 2])
    load_index(tmp_path)
    (folder,) = (tmp_path / "index").iterdir()
    before = (folder / "label.npy").stat()
    load_index(tmp_path)
    assert (folder / "label.npy").stat() == before


def test_a_stale_index_is_built_again(tmp_path):
    shards = write_shards_of(tmp_path, [2, 2])
    assert len(load_index(tmp_path)) == 4
    write_tar(tmp_path / "s-2.tar", [("new.cls", b"0"), ("new.png", image_bytes())])
    assert len(load_index(tmp_path)) == 5

    size, first = shards[0].stat().st_size, load_index(tmp_path)
    write_shards_of(tmp_path, [2, 2], classes=2)  # other labels, but no other size
    assert shards[0].stat().st_size == size
    later = load_index(tmp_path)
    assert (first.label.tolist(), later.label.tolist()) == ([0, 1, 2, 0, 0], [0, 1, 0, 1, 0])
    assert len(list((tmp_path / "index").iterdir())) == 1, "what was stale is gone"


def test_an_index_of_an_older_format_beside_the_shards_is_no_obstacle(tmp_path):
    write_shards_of(tmp_path, [2, 2])
    older = tmp_path / "index" / "older"
    older.mkdir(parents=True)
    (older / "meta.json").write_text(json.dumps({"shards": [{"name": "s-0.tar", "size": 1}]}))
    assert len(load_index(tmp_path)) == 4
    assert older.is_dir()


@pytest.mark.parametrize("name", ["label.npy", "key_offset.npy", "meta.json"])
def test_a_torn_index_is_built_again(tmp_path, name):
    write_shards_of(tmp_path, [3])
    whole = columns(load_index(tmp_path))
    (folder,) = (tmp_path / "index").iterdir()
    data = (folder / name).read_bytes()
    for torn in (b"", data[:-1], None):
        (folder / name).unlink()
        if torn is not None:
            (folder / name).write_bytes(torn)
        assert columns(load_index(tmp_path)) == whole
        assert (folder / name).read_bytes() == data


def test_two_that_build_at_once(tmp_path):
    write_shards_of(tmp_path, [20, 20])
    digests: list[str] = []
    threads = [threading.Thread(target=lambda: digests.append(load_index(tmp_path).digest)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 6
    assert len(set(digests)) == 1
    assert len(list((tmp_path / "index").iterdir())) == 1


def test_class_names_lie_beside_the_shards_or_the_index(tmp_path):
    write_shards_of(tmp_path / "x", [3])
    (tmp_path / "x/classes.txt").write_text("cat\ndog\ncow\nowl\n")
    index = load_index(tmp_path / "x")
    assert index.class_names == ("cat", "dog", "cow", "owl")
    assert index.num_classes == 4
    (tmp_path / "i").mkdir()
    (tmp_path / "i/classes.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"s-0.tar: sample 'd/002': label 2, but .*classes.txt names 2 classes"):
        load_index(tmp_path / "x", tmp_path / "i")


def test_a_key_that_comes_twice(tmp_path):
    (shard,) = write_shards_of(tmp_path, [3])
    again = write_tar(tmp_path / "t.tar", [("d/001.cls", b"0"), ("d/001.png", image_bytes())])
    with pytest.raises(InputError, match=r"t.tar: key 'd/001' comes twice, first in .*s-0.tar"):
        build_index([shard, again], tmp_path / "index")
    twice = [("a.cls", b"0"), ("a.png", image_bytes())] * 2
    with pytest.raises(InputError, match="key 'a' comes twice"):
        build_index([write_tar(tmp_path / "u.tar", twice)], tmp_path / "index")
    assert not list((tmp_path / "index").glob("*/*.npy")), "nothing is left of an index that failed but the scans"


def test_keys_may_differ_with_equal_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr("vitlight.data.scan.key_hash", lambda key: len(key))
    assert len(build_index(write_shards_of(tmp_path, [3]), tmp_path / "index")) == 3


def test_nothing_to_index(tmp_path):
    shards = write_shards_of(tmp_path, [0, 0])
    with pytest.raises(InputError, match=r"s-0.tar: no sample in any of 2 shards"):
        load_index(tmp_path)
    with pytest.raises(InputError, match=r"s-1.tar: no sample in this shard"):
        load_index(shards[1])
    with pytest.raises(InputError, match="no shard was given"):
        build_index([], tmp_path / "index")


def test_an_error_in_another_process_names_the_sample(tmp_path):
    shards = write_shards_of(tmp_path, [1, 1])
    shards.append(write_tar(tmp_path / "bad.tar", [("k.cls", b"x"), ("k.png", image_bytes())]))
    with pytest.raises(InputError, match=r"bad.tar: sample 'k': label 'x' is no number"):
        build_index(shards, tmp_path / "index", num_processes=2)


def test_an_index_dir_that_is_a_file(tmp_path):
    write_shards_of(tmp_path / "x", [1])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: can't write the index here \(.*\); set index_dir to another folder"):
        load_index(tmp_path / "x", tmp_path / "file")


def test_shards_whose_folder_cannot_be_written_are_indexed_in_the_folder_of_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("VITLIGHT_CACHE", str(tmp_path / "cache"))
    for name in ("x", "y"):
        write_shards_of(tmp_path / name, [1 + (name == "y")])
        (tmp_path / name / "index").touch()
    folders = [load_index(tmp_path / name).folder for name in ("x", "y")]
    assert [folder.parent for folder in folders] == [tmp_path / "cache/index"] * 2
    assert [len(load_index(tmp_path / name)) for name in ("x", "y")] == [1, 2]
    assert all(folder.exists() for folder in folders), "shards of another folder are no later version of these"


def test_shards_whose_writing_was_cut_off(tmp_path):
    write_shards_of(tmp_path, [1])
    (tmp_path / ".unfinished").touch()
    for source in (tmp_path, tmp_path / "s-0.tar", f"{tmp_path}/s-{{0..0}}.tar"):
        with pytest.raises(InputError, match="the writing of these shards was cut off"):
            resolve_shards(source)


def test_a_worker_is_sent_the_name_of_the_index_and_not_its_columns(tmp_path):
    index = build_index(write_shards_of(tmp_path, [150, 100]), tmp_path / "index")
    sent = pickle.dumps(index)
    assert len(sent) < 2_000
    copy = pickle.loads(sent)
    assert isinstance(copy.label, np.memmap)
    assert copy.digest == index.digest
    assert [copy.key(i) for i in range(250)] == [index.key(i) for i in range(250)]
    assert columns(copy) == columns(index)


def multi_label_shards(folder: Path) -> list[Path]:
    folder.mkdir()
    labels = [[["3"], ["1", "4"]], [], [["0", "2", "9"], ["7"], ["9", "0"]]]
    shards = []
    for i, shard in enumerate(labels):
        members = []
        for j, numbers in enumerate(shard):
            members += [(f"{i}-{j}.cls", " ".join(numbers).encode()), (f"{i}-{j}.png", image_bytes(j))]
        shards.append(write_tar(folder / f"m-{i}.tar", members))
    return shards


def test_several_labels_a_sample(tmp_path):
    multi_label_shards(tmp_path / "x")
    index = load_index(tmp_path / "x", labels=LabelSource(multi=True))
    rows = np.array([4, 0, 1, 2, 3, 1])
    expected = [[9, 0], [3], [1, 4], [0, 2, 9], [7], [1, 4]]
    assert [labels.tolist() for labels in index.labels_of(rows)] == expected
    assert index.label.tolist() == [3, 1, 0, 7, 9]
    assert index.class_counts.tolist() == [2, 1, 1, 1, 1, 0, 0, 1, 0, 2]
    assert (index.is_multi_label, index.num_classes) == (True, 10)
    assert [labels.tolist() for labels in pickle.loads(pickle.dumps(index)).labels_of(rows)] == expected
    assert index.extra_row.dtype.itemsize + index.extra_label.dtype.itemsize == 8
    with pytest.raises(InputError, match=r"m-0.tar: sample '0-1': label '1 4' is no number"):
        load_index(tmp_path / "x")


def test_the_label_settings_are_part_of_what_an_index_is_found_by(tmp_path):
    members = [("a.json", b'{"label": 1, "other": 2}'), ("a.txt", b"3"), ("a.png", image_bytes())]
    write_tar(tmp_path / "s.tar", members)
    sources = [LabelSource(), LabelSource("other"), LabelSource(part="txt"), LabelSource(multi=True)]
    indexes = [load_index(tmp_path, labels=source) for source in sources]
    assert [index.label.tolist() for index in indexes] == [[1], [2], [3], [1]]
    assert [index.is_multi_label for index in indexes] == [False, False, False, True]
    assert len({index.folder for index in indexes}) == 4
    assert [load_index(tmp_path, labels=source).folder for source in sources] == [index.folder for index in indexes]


def test_class_names_that_were_looked_up(tmp_path):
    write_tar(tmp_path / "s.tar", [("a.txt", b"owl"), ("a.png", image_bytes())])
    with pytest.raises(InputError, match="label 'owl' is no number, and no file names the classes"):
        load_index(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\nowl\n")
    assert load_index(tmp_path).label.tolist() == [1]
    (tmp_path / "classes.txt").write_text("owl\ncat\ndog\n")
    index = load_index(tmp_path)
    assert (index.label.tolist(), index.class_counts.tolist(), index.num_classes) == ([0], [1, 0, 0], 3)
    (tmp_path / "other.txt").write_text("cat\ndog\nowl\n")
    assert load_index(tmp_path, labels=LabelSource(class_file=str(tmp_path / "other.txt"))).label.tolist() == [2]


def test_too_few_class_names_for_an_index_that_is_there(tmp_path):
    write_shards_of(tmp_path, [3])
    load_index(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match=r"label 2 comes in these shards, but .*classes.txt names 2 classes"):
        load_index(tmp_path)


KILLED = """
import os, sys
from vitlight.data import scan_log
from vitlight.data.index import load_index

add = scan_log.ScanLog.add
def add_and_die(self, name, scan):
    if len(self._places) == 5:
        self._file.write(b'{"name": "torn')
        self._file.flush()
        os.kill(os.getpid(), 9)
    add(self, name, scan)
scan_log.ScanLog.add = add_and_die
load_index(sys.argv[1])
"""


def test_a_killed_building_goes_on(tmp_path, monkeypatch):
    shards = write_shards_of(tmp_path / "x", [2] * 8)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "x")], check=False)
    assert killed.returncode == -9
    scanned = []

    def count(path, *args):
        scanned.append(path)
        return scan_shard(path, *args)

    monkeypatch.setattr(index_module, "scan_shard", count)
    index = load_index(tmp_path / "x")
    assert scanned == shards[5:], "the five that were scanned are not scanned again"
    assert len(list((tmp_path / "x/index").iterdir())) == 1, "what it went on from is gone"
    assert columns(index) == columns(build_index(shards, tmp_path / "whole"))


def test_after_a_fault_only_the_mended_shard_is_scanned_again(tmp_path, monkeypatch):
    shards = write_shards_of(tmp_path, [2, 2, 2])
    write_tar(shards[2], [("k.cls", b"x"), ("k.png", image_bytes())])
    with pytest.raises(InputError, match="sample 'k'"):
        load_index(tmp_path)
    write_tar(shards[2], [("k.cls", b"2"), ("k.png", image_bytes())])
    scanned = []
    monkeypatch.setattr(index_module, "scan_shard", lambda path, *args: scanned.append(path) or scan_shard(path, *args))
    assert load_index(tmp_path).label.tolist() == [0, 1, 2, 0, 2]
    assert scanned == [shards[2]]


def test_remote_shards_are_fetched_once_and_their_digests_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("VITLIGHT_CACHE", str(tmp_path / "caches"))
    shards = write_shards_of(tmp_path / "x", [2, 3])
    urls = [f"pipe:echo . >> {tmp_path}/asked; cat {shard}" for shard in shards]
    cache = ShardCache(tmp_path / "cache", None)
    index = load_index(urls, cache=cache)
    assert index.shards == tuple(urls)
    assert index.folder.parent == tmp_path / "caches/index"
    digests = [hashlib.blake2b(shard.read_bytes(), digest_size=16).hexdigest() for shard in shards]
    assert index.shard_digests == tuple(digests)
    assert index.num_bytes.tolist() == [shard.stat().st_size for shard in shards]
    assert index.digest == load_index(tmp_path / "x").digest
    again = load_index(urls)
    assert (again.digest, again.shard_digests) == (index.digest, index.shard_digests)
    assert (tmp_path / "asked").read_text() == ".\n" * 2, "nothing is asked when the index is opened"


def resident_kib(of: str) -> int:
    """KiB of this process's mapping of a file that are in memory."""
    maps = Path("/proc/self/smaps").read_text().split(f"{of}\n")[1]
    return int(maps.split("Rss:")[1].split()[0])


def test_released_columns_leave_memory_and_come_back(tmp_path):
    index = build_index(write_shards_of(tmp_path, [150, 100]), tmp_path / "index")
    before = columns(index)
    assert resident_kib(index.label.filename) > 0
    index.release()
    assert resident_kib(index.label.filename) == 0
    assert columns(index) == before


def test_an_index_that_was_replaced_is_not_opened_by_a_worker(tmp_path):
    index = build_index(write_shards_of(tmp_path, [2]), tmp_path / "index")
    sent = pickle.dumps(index)
    meta = json.loads((index.folder / "meta.json").read_text())
    (index.folder / "meta.json").write_text(json.dumps({**meta, "digest": "0" * 32}))
    with pytest.raises(InputError, match="was removed or replaced while it was in use"):
        pickle.loads(sent)


@pytest.mark.parametrize("bucket_rows", [1 << 26, 100, 7])
def test_repeated_hashes_are_found_bucket_by_bucket(monkeypatch, bucket_rows):
    monkeypatch.setattr("vitlight.data.columns._BUCKET_ROWS", bucket_rows)
    hashes = np.random.default_rng(0).integers(0, 1 << 63, 1000, dtype=np.uint64) * np.uint64(2)
    hashes[990:] = hashes[[3, 5, 7, 3, 5, 900, 901, 902, 903, 0]]
    values, counts = np.unique(hashes, return_counts=True)
    assert find_repeated(hashes).tolist() == values[counts > 1].tolist()
    assert find_repeated(hashes[:0]).tolist() == []

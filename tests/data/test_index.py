import hashlib
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.data.tars import image_bytes, write_tar
from vitlight.data.index import build_index, load_index, resolve_shards
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
    names = ("shard", "offset", "size", "label", "key_hash")
    return {name: getattr(index, name).tolist() for name in names}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_every_image_lies_where_the_index_says(tmp_path, num_processes):
    shards = write_shards_of(tmp_path, [5, 0, 1, 4])
    index = build_index(shards, tmp_path / "index", num_processes=num_processes)
    assert len(index) == 10
    assert index.shards == tuple(shards)
    assert index.shard.tolist() == [0] * 5 + [2] + [3] * 4
    assert index.label.tolist() == [i % 3 for i in range(10)]
    assert (index.num_classes, index.class_names) == (3, None)
    for i in range(10):
        data = shards[index.shard[i]].read_bytes()
        assert data[int(index.offset[i]) :][: int(index.size[i])] == image_bytes(i)
        assert index.key(i) == f"d/{i:03d}"
        assert int(index.key_hash[i]).to_bytes(8, "little") == hashlib.blake2b(b"d/%03d" % i, digest_size=8).digest()
    dtypes = [getattr(index, name).dtype for name in ("shard", "offset", "size", "label", "key_hash")]
    assert dtypes == [np.uint32, np.uint64, np.uint32, np.int32, np.uint64]
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
        assert load_index(source).shards == tuple(shards)
    assert load_index(f"{tmp_path}/x/s-{{0..1}}.tar").shards == tuple(shards[:2])
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
    with pytest.raises(InputError, match=r"s-0.tar: sample 'd/002' has label 2, but classes.txt names 2 classes"):
        load_index(tmp_path / "x", tmp_path / "i")


def test_a_key_that_comes_twice(tmp_path):
    (shard,) = write_shards_of(tmp_path, [3])
    again = write_tar(tmp_path / "t.tar", [("d/001.cls", b"0"), ("d/001.png", image_bytes())])
    with pytest.raises(InputError, match=r"t.tar: key 'd/001' comes twice, first in .*s-0.tar"):
        build_index([shard, again], tmp_path / "index")
    twice = [("a.cls", b"0"), ("a.png", image_bytes())] * 2
    with pytest.raises(InputError, match="key 'a' comes twice"):
        build_index([write_tar(tmp_path / "u.tar", twice)], tmp_path / "index")
    assert list((tmp_path / "index").iterdir()) == [], "nothing is left of an index that failed"


def test_keys_may_differ_with_equal_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr("vitlight.data.columns.key_hash", lambda key: len(key))
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
    with pytest.raises(InputError, match=r"bad.tar: sample 'k' has label 'x'"):
        build_index(shards, tmp_path / "index", num_processes=2)


def test_an_index_dir_that_is_a_file(tmp_path):
    write_shards_of(tmp_path / "x", [1])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: can't write the index here \(.*\); set index_dir to another folder"):
        load_index(tmp_path / "x", tmp_path / "file")


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

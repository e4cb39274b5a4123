import pickle

import pytest

from vitlight.data.store import LocalStore
from vitlight.errors import InputError


@pytest.fixture
def paths(tmp_path):
    files = [tmp_path / f"{i}.tar" for i in range(5)]
    for i, path in enumerate(files):
        path.write_bytes(bytes([i]) * 10 + b"0123456789")
    return files


def test_ranges_are_read_with_few_files_open(paths):
    store = LocalStore(paths, max_open=2)
    for _ in range(2):
        for shard in range(5):
            assert store.read(shard, 8, 4) == bytes([shard, shard]) + b"01"
    assert len(store._open) == 2
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read(4, 10, 10) == b"0123456789"
    store.close()
    copy.close()


def test_a_missing_or_short_shard_is_named(paths, tmp_path):
    store = LocalStore([*paths, tmp_path / "gone.tar"])
    with pytest.raises(InputError, match=r"gone\.tar can't be read: No such file"):
        store.read(5, 0, 1)
    with pytest.raises(InputError, match=r"0\.tar ends before byte 21; index it again"):
        store.read(0, 15, 6)
    store.close()

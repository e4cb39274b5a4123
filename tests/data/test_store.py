import pickle
import subprocess
import sys

import numpy as np
import pytest

from tests.data.shaky_server import Shaky, serve
from tests.data.test_cache import HASTY, body, digest
from vitlight.data.cache import ShardCache
from vitlight.data.store import CachedStore, LocalStore, open_store
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


def test_local_shards_need_no_cache(paths):
    store = open_store([f"file://{paths[0]}", str(paths[1])])
    assert isinstance(store, LocalStore)
    assert [store.read(i, 9, 3) for i in (0, 1)] == [b"\x0001", b"\x0101"]
    store.close()


def test_local_and_remote_shards_of_one_set(paths, tmp_path):
    data = [body(i, 50_000) for i in range(2)]
    files = {f"/s-{i}.tar": data[i] for i in range(2)}
    with serve(files, Shaky(error_probability=0.2, cut_probability=0.4, seed=1)) as server:
        shards = [server.url("/s-0.tar"), str(paths[3]), server.url("/s-1.tar"), f"pipe:cat {paths[4]}"]
        num_bytes = np.array([50_000, 20, 50_000, 20], np.uint64)
        digests = [digest(data[0]), "", digest(data[1]), digest(paths[4].read_bytes())]
        store = open_store(shards, num_bytes, digests, ShardCache(tmp_path / "cache", 60_000, HASTY))
        assert isinstance(store, CachedStore)
        for each in (store, pickle.loads(pickle.dumps(store))):
            for offset in (0, 49_000):
                assert each.read(0, offset, 1000) == data[0][offset : offset + 1000]
                assert each.read(1, 9, 2) == b"\x030"
                assert each.read(2, offset, 1000) == data[1][offset : offset + 1000]
                assert each.read(3, 9, 2) == b"\x040"
            each.close()
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) == 50_020


def test_remote_shards_that_have_no_place(tmp_path):
    shards = ["a.tar", "https://h/b.tar", "https://h/c.tar"]
    with pytest.raises(InputError, match=r"2 of 3 shards are remote; set data.cache_dir to a folder to keep them in"):
        open_store(shards)
    cache = ShardCache(tmp_path, 1000)
    assert isinstance(open_store(shards, [5000, 10, 1000], None, cache), CachedStore)
    with pytest.raises(
        InputError, match="the largest remote shard has 1001 bytes, but the cache is bounded to 1000; raise"
    ):
        open_store(shards, [5000, 10, 1001], None, cache)


def test_stores_start_fast():
    code = (
        "import sys, vitlight.data.prefetch, vitlight.data.store\n"
        "print(sorted({'fsspec', 'requests', 'urllib3', 'torch', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"

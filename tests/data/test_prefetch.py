import itertools
import time

import pytest

from tests.data.shaky_server import Shaky, serve
from tests.data.test_cache import HASTY, body, digest, used_bytes
from vitlight.data.cache import ShardCache
from vitlight.data.prefetch import Prefetcher, ShardUse
from vitlight.errors import InputError

SIZE = 100_000


def files(count):
    return {f"/s-{i}.tar": body(i, SIZE) for i in range(count)}


def in_turn(count, steps_each=10):
    """Shard i is read at steps 10 i to 10 i + 9."""
    return [ShardUse(i, i * steps_each, (i + 1) * steps_each - 1) for i in range(count)]


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def make(server, folder, count, max_bytes, uses, **options):
    cache = ShardCache(folder, max_bytes, HASTY)
    shards = [server.url(f"/s-{i}.tar") for i in range(count)]
    return Prefetcher(cache, shards, [SIZE] * count, [digest(body(i, SIZE)) for i in range(count)], uses, **options)


def requested(server):
    return [int(path.split("-")[1].split(".")[0]) for path, _ in server.requests]


def test_fetched_ahead_in_order_and_released_behind(tmp_path):
    with serve(files(8)) as server, make(server, tmp_path, 8, 4 * SIZE, in_turn(8), num_threads=1) as prefetcher:
        cache = prefetcher._cache
        wait_until(lambda: cache.counts().downloads == 3)
        time.sleep(0.1)
        assert requested(server) == [0, 1, 2], "the fourth place is left for what is needed at once"
        prefetcher.advance(9)
        time.sleep(0.1)
        assert requested(server) == [0, 1, 2], "step 9 still reads shard 0"
        assert cache.read(server.url("/s-7.tar"), 0, 10, SIZE) == body(7, SIZE)[:10]
        prefetcher.advance(10)
        wait_until(lambda: cache.counts().downloads == 5)
        assert requested(server) == [0, 1, 2, 7, 3]
        for step in range(11, 80):
            prefetcher.advance(step)
            shard = step // 10
            assert cache.read(server.url(f"/s-{shard}.tar"), step, 50, SIZE) == body(shard, SIZE)[step : step + 50]
            assert used_bytes(tmp_path) <= 4 * SIZE
            if step % 10 == 0:
                wait_until(lambda: len(cache._pins) == min(3, 8 - shard))  # noqa: B023
        prefetcher.advance(80)
        assert cache._pins == {}


def test_uses_that_come_back_and_never_end(tmp_path):
    uses = (ShardUse(i % 2, i * 10, i * 10 + 9) for i in itertools.count())
    with serve(files(2)) as server, make(server, tmp_path, 2, None, uses, max_uses=20) as prefetcher:
        cache = prefetcher._cache
        wait_until(lambda: len(cache._pins) == 2)
        wait_until(lambda: sum(map(len, prefetcher._last_steps.values())) == 20)
        prefetcher.advance(150)
        wait_until(lambda: sum(map(len, prefetcher._last_steps.values())) == 20)
        assert len(cache._pins) == 2
        assert cache.counts().downloads == 2
    assert cache._pins == {}


def test_what_is_past_or_local_is_not_fetched(tmp_path):
    (tmp_path / "local.tar").write_bytes(b"x")
    with serve(files(3)) as server:
        cache = ShardCache(tmp_path / "cache", None, HASTY)
        shards = [server.url("/s-0.tar"), str(tmp_path / "local.tar"), server.url("/s-2.tar")]
        prefetcher = Prefetcher(cache, shards, [SIZE, 1, SIZE], None, in_turn(3))
        prefetcher.advance(10)
        with prefetcher:
            wait_until(lambda: cache.counts().downloads == 1)
            wait_until(lambda: not any(thread.is_alive() for thread in prefetcher._threads))
        assert requested(server) == [2]


def test_two_ranks_fetch_a_shard_once_and_share_the_bound(tmp_path):
    with serve(files(6), Shaky(bytes_per_second=2e6)) as server:
        ranks = [make(server, tmp_path, 6, 5 * SIZE, in_turn(6), share=0.5) for _ in range(2)]
        for rank in ranks:
            rank.start()
        wait_until(lambda: all(len(rank._cache._pins) == 2 for rank in ranks))
        assert sorted(requested(server)) == [0, 1]
        for step in range(0, 61, 10):
            for rank in ranks:
                rank.advance(step)
            left = min(2, 6 - step // 10)
            wait_until(lambda: all(len(rank._cache._pins) == left for rank in ranks))  # noqa: B023
        assert sorted(requested(server)) == list(range(6))
        for rank in ranks:
            rank.stop()


def test_an_error_is_raised_at_the_next_step(tmp_path):
    with serve(files(1)) as server, make(server, tmp_path, 2, None, in_turn(2)) as prefetcher:
        wait_until(lambda: prefetcher._error is not None)
        for _ in range(2):
            with pytest.raises(InputError, match=r"s-1.tar: can't be fetched: HTTP 404"):
                prefetcher.advance(0)


def test_a_plan_that_fails_is_an_error_too(tmp_path):
    def uses():
        yield ShardUse(0, 0, 9)
        raise ValueError("no plan")

    with serve(files(1)) as server, make(server, tmp_path, 1, None, uses()) as prefetcher:
        wait_until(lambda: prefetcher._error is not None)
        with pytest.raises(ValueError, match="no plan"):
            prefetcher.advance(0)


def test_stop_is_quick(tmp_path):
    with serve(files(6), Shaky(bytes_per_second=20_000)) as server:
        prefetcher = make(server, tmp_path, 6, 3 * SIZE, in_turn(6))
        prefetcher.stop()  # not started
        prefetcher = make(server, tmp_path, 6, 3 * SIZE, in_turn(6))
        prefetcher.start()
        wait_until(lambda: sum(path.stat().st_size > 0 for path in tmp_path.glob("*.part")) == 2)
        began = time.monotonic()
        prefetcher.advance(1)
        prefetcher.stop()
        assert time.monotonic() - began < 1
        assert not any(thread.is_alive() for thread in prefetcher._threads)
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name[0] != ".") == [
        ".json",
        ".json",
        ".part",
        ".part",
    ]

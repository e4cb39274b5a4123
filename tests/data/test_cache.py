import hashlib
import multiprocessing
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from tests.data.shaky_server import Shaky, serve
from vitlight.data.cache import ShardCache
from vitlight.data.fetch import Cancelled, FetchPolicy
from vitlight.data.remote import Timeouts
from vitlight.errors import InputError

HASTY = FetchPolicy(
    num_attempts=4,
    give_up_seconds=20,
    first_wait_seconds=0.01,
    max_wait_seconds=0.02,
    room_seconds=0.3,
    timeouts=Timeouts(2, 0.3),
)
MB = 1_000_000


def body(i: int, size: int = MB) -> bytes:
    return random.Random(i).randbytes(size)


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def shards_of(*sizes: int) -> dict[str, bytes]:
    return {f"/d/s-{i}.tar": body(i, size) for i, size in enumerate(sizes)}


def kept(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in folder.iterdir() if not path.name.startswith("."))


def used_bytes(folder: Path) -> int:
    """Of whole files and of parts; what goes while it is counted is asked for again."""
    while True:
        try:
            return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".tar", ".part"))
        except FileNotFoundError:
            continue


def run_all(processes):
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_a_shard_is_fetched_once_and_kept(tmp_path):
    files = shards_of(MB, 1000)
    with serve(files) as server:
        cache = ShardCache(tmp_path, None, HASTY)
        for _ in range(2):
            path = cache.fetch(server.url("/d/s-0.tar?sig=secret"), MB, digest(files["/d/s-0.tar"]))
            assert path.read_bytes() == files["/d/s-0.tar"]
            assert ShardCache.digest(path) == digest(files["/d/s-0.tar"])
            assert path.name.endswith("-s-0.tar")
        assert len(server.requests) == 1
        url = server.url("/d/s-1.tar")
        copy = pickle.loads(pickle.dumps(cache))
        assert copy.read(url, 10, 50) == files["/d/s-1.tar"][10:60]
        assert cache.read(url, 990, 10) == files["/d/s-1.tar"][990:]
        assert cache.fetch(url) == cache.fetch(url, 1000) == cache.fetch(url, None, digest(files["/d/s-1.tar"]))
        assert len(server.requests) == 2
        with pytest.raises(InputError, match=r"shard http://.*/d/s-1.tar ends before byte 1001; index it again"):
            cache.read(url, 990, 11)
    assert kept(tmp_path) == sorted(f"{digest(data)}-{name[3:]}" for name, data in files.items())
    counts = cache.counts()
    assert (counts.downloads, counts.retries, counts.evictions) == (2, 0, 0)


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_server_that_cuts_and_errs(tmp_path, has_ranges):
    files = shards_of(*[200_000] * 12)
    shaky = Shaky(error_probability=0.3, cut_probability=0.5, has_ranges=has_ranges, seed=3)
    with serve(files, shaky) as server:
        cache = ShardCache(tmp_path, None, replace(HASTY, num_attempts=20))
        for name, data in files.items():
            assert cache.fetch(server.url(name), len(data), digest(data)).read_bytes() == data
        num_requests, sent = len(server.requests), sum(server.bytes_sent.values())
    assert cache.counts().retries == num_requests - 12
    assert num_requests > 24
    if has_ranges:
        assert sent < 1.01 * 12 * 200_000, "a cut connection was resumed"
    else:
        assert sent > 1.5 * 12 * 200_000


def test_the_bound_holds_at_every_moment(tmp_path):
    files = shards_of(*[300_000, 200_000, 100_000] * 4)
    urls, most, done = {}, [0], threading.Event()

    def sample():
        while not done.is_set():
            most[0] = max(most[0], used_bytes(tmp_path))

    with serve(files, Shaky(error_probability=0.1, cut_probability=0.2, bytes_per_second=3e6)) as server:
        urls = {server.url(name): data for name, data in files.items()}
        caches = [ShardCache(tmp_path, 700_000, replace(HASTY, room_seconds=20, num_attempts=20)) for _ in range(3)]
        sampler = threading.Thread(target=sample)
        sampler.start()

        def reader(i: int) -> int:
            order, read = random.Random(i), 0
            for _ in range(15):
                url = order.choice(list(urls))
                offset = order.randrange(90_000)
                assert caches[i].read(url, offset, 1000, len(urls[url]), digest(urls[url])) == urls[url][offset:][:1000]
                read += 1
            return read

        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(reader, range(3))) == [15] * 3
        done.set()
        sampler.join()
    assert 300_000 < most[0] <= 700_000
    counts = caches[0].counts()
    assert counts.evictions >= counts.downloads - 7 > 0
    assert used_bytes(tmp_path) <= 700_000


def test_the_least_recently_released_goes_first_and_pins_stay(tmp_path):
    with serve(shards_of(*[100_000] * 6)) as server:
        url = [server.url(f"/d/s-{i}.tar") for i in range(6)]
        cache = ShardCache(tmp_path, 300_000, HASTY)

        def there():
            return [i for i in range(6) if cache._space.find(url[i], None, None) is not None]

        for i in (0, 1, 2):
            cache.pin(url[i])
        for i in (1, 0):
            cache.unpin(url[i])
        cache.fetch(url[3])
        assert there() == [0, 2, 3], "1 was released before 0, and 2 is pinned"
        cache.fetch(url[0])
        cache.fetch(url[4])
        assert there() == [0, 2, 4]
        cache.pin(url[0])
        cache.pin(url[4])
        with pytest.raises(InputError) as error:
            cache.fetch(url[5], 100_000)
        assert str(error.value) == (
            f"{url[5]} (100000 bytes) found no room for 0.3 s: the cache in {tmp_path} is bounded to 300000 bytes, "
            "and too many of them are in use; raise data.cache_gib"
        )
        assert there() == [0, 2, 4]
        releaser = threading.Timer(0.1, cache.unpin, [url[2]])
        releaser.start()
        assert cache.read(url[5], 5, 5) == body(5, 100_000)[5:10], "waited for the release"
        assert there() == [0, 4, 5]
        with pytest.raises(
            InputError, match=r"s-5.tar has 400000 bytes or more, but .* bounded to 300000; raise data.c"
        ):
            cache.fetch(url[5], 400_000)
        cache.unpin(url[5])  # not pinned: nothing
        cache.unpin(url[0])
        cache.unpin(url[4])


def test_a_pin_ahead_of_need_waits_and_leaves_room(tmp_path):
    with serve(shards_of(*[100_000] * 4)) as server:
        url = [server.url(f"/d/s-{i}.tar") for i in range(4)]
        cache = ShardCache(tmp_path, 300_000, HASTY)
        cache.pin(url[0], 100_000, leave_bytes=100_000)
        cache.fetch(url[3])
        cache.pin(url[1], 100_000, leave_bytes=100_000)
        assert cache.counts().evictions == 0, "what may be evicted counts as room"
        cancel = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(cache.pin, url[2], 100_000, leave_bytes=100_000, cancel=cancel)
            time.sleep(0.1)
            assert cache.read(url[2], 0, 9, 100_000) == body(2, 100_000)[:9], "who needs it now need not wait for it"
            cache.unpin(url[0])
            assert ahead.result(5).read_bytes() == body(2, 100_000)
            waiting = pool.submit(cache.pin, url[0], 90_000, leave_bytes=300_000, cancel=cancel)
            cancel.set()
            with pytest.raises(Cancelled):
                waiting.result(5)
        cache.unpin(url[1])
        cache.unpin(url[2])


def fetch_them(folder, urls, seed):
    cache = ShardCache(folder, None, HASTY)
    order = random.Random(seed).sample(urls, len(urls))
    for url in order:
        number = int(url.rpartition("-")[2].removesuffix(".tar"))
        assert cache.fetch(url, 100_000).read_bytes() == body(number, 100_000)


def test_processes_that_share_a_cache_fetch_each_shard_once(tmp_path):
    files = shards_of(*[100_000] * 8)
    with serve(files, Shaky(bytes_per_second=2e6)) as server:
        urls = [server.url(name) for name in files]
        spawn = multiprocessing.get_context("spawn")
        run_all([spawn.Process(target=fetch_them, args=(tmp_path, urls, seed)) for seed in range(3)])
        assert len(server.requests) == 8
        assert sum(server.bytes_sent.values()) == 800_000
    assert len(kept(tmp_path)) == 8, "and nothing else is left"
    assert ShardCache(tmp_path, None).counts().downloads == 8


def start_fetch(folder: Path, url: str) -> subprocess.Popen:
    code = (
        "import sys; from pathlib import Path; from vitlight.data.cache import ShardCache\n"
        "ShardCache(Path(sys.argv[1]), 10**7).fetch(sys.argv[2])"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(folder), url])


def test_killed_while_fetching_leaves_nothing_half_and_is_resumed(tmp_path):
    with serve(shards_of(400_000), Shaky(bytes_per_second=400_000)) as server:
        url = server.url("/d/s-0.tar")
        for part in (80_000, 200_000):
            process = start_fetch(tmp_path, url)
            while server.bytes_sent["/d/s-0.tar"] < part:
                time.sleep(0.005)
            waiting = start_fetch(tmp_path, url) if part == 200_000 else None
            process.kill()
            assert process.wait() == -signal.SIGKILL
            assert [name for name in kept(tmp_path) if name.endswith(".tar")] == []
        assert waiting is not None and waiting.wait() == 0, "who waited for it goes on with it"
        assert len(server.requests) == 3
        assert server.bytes_sent["/d/s-0.tar"] < 400_000 + 2 * 60_000, "resumed, but for what was on its way"
        ranges = [int(each.removeprefix("bytes=").removesuffix("-")) for _, each in server.requests[1:] if each]
        assert len(ranges) == 2 and 0 < ranges[0] < ranges[1]
        cache = ShardCache(tmp_path, 10**7)
        assert cache.fetch(url).read_bytes() == body(0, 400_000)
        assert kept(tmp_path) == [f"{digest(body(0, 400_000))}-s-0.tar"]


def test_a_pin_ends_with_its_process_and_a_dead_part_gives_room(tmp_path):
    with serve(shards_of(*[100_000] * 3)) as server:
        url = [server.url(f"/d/s-{i}.tar") for i in range(3)]
        code = (
            "import sys; from pathlib import Path; from vitlight.data.cache import ShardCache\n"
            "cache = ShardCache(Path(sys.argv[1]), 200_000); cache.pin(sys.argv[2]); print('pinned', flush=True)\n"
            "sys.stdin.readline(); cache.fetch(sys.argv[3])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), *url[:2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"pinned\n"
        server.shaky.bytes_per_second = 20_000
        process.stdin.write(b"\n")
        process.stdin.flush()
        while server.bytes_sent["/d/s-1.tar"] < 20_000:
            time.sleep(0.005)
        cache = ShardCache(tmp_path, 200_000, HASTY)
        with pytest.raises(InputError, match="found no room"):
            cache.fetch(url[2])
        process.kill()
        process.communicate()
        server.shaky.bytes_per_second = None
        cache.pin(url[2])
        assert [name for name in kept(tmp_path) if name.endswith((".tar", ".part"))] == [
            f"{digest(body(2, 100_000))}-s-2.tar",
            "s-1.part",
        ], "what was pinned went first: the part was written later"
        cache.fetch(url[0])
        assert [name.partition("-")[2] for name in kept(tmp_path)] == ["s-0.tar", "s-2.tar"]
        cache.unpin(url[2])


@pytest.mark.parametrize(
    ("shaky", "message"),
    [
        (Shaky(statuses=[(404, {})]), r"can't be fetched: HTTP 404 Not Found$"),
        (Shaky(statuses=[(403, {})]), r"can't be fetched: HTTP 403 Forbidden$"),
        (Shaky(error_probability=1), r"gave up after 4 attempts in \d s without a new byte \(0 bytes had come\); last: "
         r"HTTP 500 Internal Server Error$"),
        (Shaky(statuses=[(503, {"Retry-After": "60"})]), r"gave up after 1 attempts .*; last: HTTP 503 Service Unav"),
    ],
)  # fmt: skip
def test_errors_name_shard_attempts_and_reason_and_no_secret(tmp_path, shaky, message):
    with serve(shards_of(1000), shaky) as server:
        url = server.url("/d/s-0.tar?sig=secret").replace("http://", "http://me:word@")
        with pytest.raises(InputError, match=message) as error:
            ShardCache(tmp_path, None, HASTY).fetch(url)
    assert str(error.value).startswith(server.url("/d/s-0.tar: "))
    assert "secret" not in str(error.value) and "word" not in str(error.value)
    assert kept(tmp_path) == []


def test_no_server(tmp_path):
    with serve({}) as server:
        url = server.url("/d/s-0.tar?sig=secret")
    with pytest.raises(InputError, match=r"/d/s-0.tar: can't be fetched: gave up .*; last: Connection refused$"):
        ShardCache(tmp_path, None, HASTY).fetch(url)


def test_retry_after_is_honoured(tmp_path):
    with serve(shards_of(1000), Shaky(statuses=[(429, {"Retry-After": "1"})])) as server:
        began = time.monotonic()
        ShardCache(tmp_path, None, HASTY).fetch(server.url("/d/s-0.tar"))
        assert time.monotonic() - began >= 1


def test_a_stalled_connection_is_given_up_and_resumed(tmp_path):
    with serve(shards_of(50_000), Shaky(stall_after=20_480)) as server:
        cache = ShardCache(tmp_path, None, HASTY)
        assert cache.fetch(server.url("/d/s-0.tar")).read_bytes() == body(0, 50_000)
        assert server.requests[1][1] == "bytes=20480-"
    assert cache.counts().retries == 1


def test_a_body_of_unknown_length(tmp_path):
    with serve(shards_of(50_000), Shaky(has_length=False, cut_probability=0.5, seed=4)) as server:
        cache = ShardCache(tmp_path, 60_000, replace(HASTY, num_attempts=20))
        data = body(0, 50_000)
        assert cache.fetch(server.url("/d/s-0.tar"), 50_000, digest(data)).read_bytes() == data
        assert cache.counts().retries == len(server.requests) - 1 > 0


def test_a_shard_that_changed(tmp_path):
    files = shards_of(50_000)
    with serve(files) as server:
        url, old = server.url("/d/s-0.tar"), digest(files["/d/s-0.tar"])
        cache = ShardCache(tmp_path, None, HASTY)
        cache.fetch(url, 50_000, old)
        server.files["/d/s-0.tar"] = body(9, 50_000)
        assert ShardCache.digest(cache.fetch(url, 50_000, old)) == old, "what lies here is still what was indexed"
        assert ShardCache.digest(cache.fetch(url, 50_000, digest(body(9, 50_000)))) == digest(body(9, 50_000))
        empty = ShardCache(tmp_path / "new", None, HASTY)
        with pytest.raises(InputError) as error:
            empty.fetch(url, 50_000, old)
        assert str(error.value) == (
            f"{url}: changed since it was indexed (50000 bytes with digest {digest(body(9, 50_000))}, not 50000 with {old});"
            " index it again"
        )
        with pytest.raises(InputError, match=r"changed since it was indexed \(it has 50000 bytes, not 40000\)"):
            empty.fetch(url, 40_000)
    assert kept(tmp_path / "new") == []


def test_a_shard_that_changed_while_it_was_fetched(tmp_path):
    with serve(shards_of(300_000), Shaky(bytes_per_second=1e6)) as server:
        url = server.url("/d/s-0.tar")
        process = start_fetch(tmp_path, url)
        while server.bytes_sent["/d/s-0.tar"] < 100_000:
            time.sleep(0.005)
        process.kill()
        process.wait()
        server.files["/d/s-0.tar"] = body(7, 300_000)
        assert ShardCache(tmp_path, None, HASTY).fetch(url).read_bytes() == body(7, 300_000), "no half of the old one"


def test_pipes(tmp_path):
    (tmp_path / "s-0.tar").write_bytes(body(0, 500_000))
    cache = ShardCache(tmp_path / "cache", 1_500_000, HASTY)
    shard = f"pipe:cat {tmp_path}/s-0.tar | cat"
    assert cache.fetch(shard).read_bytes() == body(0, 500_000)
    assert cache.fetch(shard, 500_000, digest(body(0, 500_000))).name.endswith("-pipe_cat_..._s-0.tar")
    assert cache.counts().downloads == 1
    with pytest.raises(InputError, match=r"^pipe:cat ... s-0.tar: changed since it was indexed \(500000 bytes .*"):
        cache.fetch(shard, 500_001)
    with pytest.raises(InputError, match=r"s-0.tar: changed since it was indexed \(it has more than 400000 bytes\)"):
        cache.fetch(shard, 400_000)
    with pytest.raises(InputError, match=r"^pipe:cat: .* gave up after 4 attempts .* exit code 1: cat: .*No such file"):
        cache.fetch(f"pipe:cat {tmp_path}/none | cat")
    with pytest.raises(
        InputError, match=r"^pipe:no-such-program: the command can't be run: exit code 127: .*not found"
    ):
        cache.fetch("pipe:no-such-program")
    with pytest.raises(InputError, match=r"^pipe:sleep: .* last: no byte came for 0.3 s"):
        cache.fetch("pipe:sleep 50")
    with pytest.raises(InputError, match=r"yes has \d+ bytes or more, but .* bounded to 1500000; raise data.cache_gib"):
        cache.fetch("pipe:yes")
    assert kept(tmp_path / "cache") == [], "all gave way to what did not fit; no part that can't be resumed is left"


def test_filesystems_of_fsspec(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/s-0.tar", body(0, 20 * MB))
    cache = ShardCache(tmp_path, None, HASTY)
    try:
        path = cache.fetch("memory://bucket/s-0.tar", 20 * MB)
        assert path.read_bytes() == body(0, 20 * MB)
        assert ShardCache.digest(path) == digest(body(0, 20 * MB))
        with pytest.raises(InputError, match=r"^memory://bucket/s-1.tar: can't be fetched: no such file$"):
            cache.fetch("memory://bucket/s-1.tar")
    finally:
        memory.rm("/bucket", recursive=True)


def test_an_fsspec_download_is_resumed(tmp_path, monkeypatch):
    memory = fsspec.filesystem("memory")
    data = body(0, 20 * MB)
    memory.pipe("/bucket/s-0.tar", data)
    read = fsspec.implementations.memory.MemoryFile.read
    starts = []

    def fragile(file, size=-1):
        starts.append(file.tell())
        if len(starts) == 2:
            raise OSError("reset by peer")
        return read(file, size)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFile, "read", fragile)
    cache = ShardCache(tmp_path, None, HASTY)
    try:
        assert cache.fetch("memory://bucket/s-0.tar", 20 * MB, digest(data)).stat().st_size == 20 * MB
    finally:
        memory.rm("/bucket", recursive=True)
    block = 8 * 2**20
    assert starts == [0, block, block, 2 * block, 20 * MB]
    assert cache.counts().retries == 1


def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: can't keep shards here \(.*\); set data.cache_dir to another folder"):
        ShardCache(tmp_path / "file", None).fetch("pipe:true")


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "mine.tar").write_bytes(bytes(1000))
    with serve(shards_of(100_000, 100_000)) as server:
        cache = ShardCache(tmp_path, 100_000, HASTY)
        for i in range(2):
            cache.fetch(server.url(f"/d/s-{i}.tar"))
    assert (tmp_path / "mine.tar").stat().st_size == 1000
    assert (tmp_path / ".counts.json").stat().st_size < 100


def test_a_pin_ahead_of_a_kept_shard_leaves_room_too(tmp_path):
    """Training and evaluation each fetch ahead, of shards that lie there already; one that is needed now must find room."""
    files = shards_of(*[1000] * 6)
    with serve(files) as server:
        urls = [server.url(path) for path in files]
        cache, other = (ShardCache(tmp_path, 4500, HASTY) for _ in range(2))
        for url in urls[:4]:
            cache.fetch(url)
        for url in urls[:3]:
            cache.pin(url, leave_bytes=1000)
        ahead = threading.Thread(target=other.pin, args=(urls[3],), kwargs={"leave_bytes": 1000})
        ahead.start()
        time.sleep(0.1)
        assert ahead.is_alive()
        assert cache.read(urls[5], 10, 50) == files["/d/s-5.tar"][10:60]
        assert used_bytes(tmp_path) <= 4500
        for url in urls[:3]:
            cache.unpin(url)
        ahead.join(5)
        assert not ahead.is_alive()
        assert other.read(urls[3], 0, 1000) == files["/d/s-3.tar"]

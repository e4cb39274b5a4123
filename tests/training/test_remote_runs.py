"""Whole runs on shards that lie elsewhere, behind a server that is slow, cuts connections and fails."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import webdataset

from tests.conftest import tiny_sample
from tests.data.shaky_server import Shaky, serve
from tests.training.test_run import assert_bit_equal, final_state, fit_args_for, rows_without_times
from vitlight.cli import main
from vitlight.data.cache import ShardCache
from vitlight.data.index import load_index
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run

NUM_SHARDS = 10
FETCHED_AGAIN = r"an evaluation lie in .* GiB of remote shards, .*: every evaluation fetches them again"
WINDOW = ["--data.window_shards=4", "--data.num_streams=2"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """10 shards of 14 to 23 images."""
    folder = tmp_path_factory.mktemp("train")
    rest = iter(range(200))
    for number in range(NUM_SHARDS):
        with webdataset.TarWriter(str(folder / f"s-{number}.tar"), encoder=False) as writer:
            for sample in (tiny_sample(next(rest), "train") for _ in range(14 + number)):
                label = str(sample.label).encode()
                writer.write({"__key__": sample.key, sample.extension: sample.image, "cls": label})
    return folder


@pytest.fixture(scope="module")
def files(shards) -> dict[str, bytes]:
    return {f"/s-{i}.tar": (shards / f"s-{i}.tar").read_bytes() for i in range(NUM_SHARDS)}


def run_of(args: list[str]) -> RunDirectory:
    return RunDirectory(resolve_run(args).run_dir)


@pytest.fixture(scope="module")
def local(tiny_shards, shards, tmp_path_factory) -> RunDirectory:
    """The finished run on the same shards where they lie on this disk."""
    args = [*fit_args_for(tiny_shards, tmp_path_factory.mktemp("local")), *WINDOW, f"--data.train={shards}"]
    assert main(args) == 0
    return run_of(args)


def remote_args(tiny_shards, folder: Path, source: str, max_bytes: int | None = None) -> list[str]:
    args = [
        *fit_args_for(tiny_shards, folder),
        *WINDOW,
        f"--data.train={source}",
        f"--data.index_dir={folder / 'index'}",
    ]
    gib = 1.0 if max_bytes is None else max_bytes / 2**30
    return [*args, f"--data.cache_dir={folder / 'cache'}", f"--data.cache_gib={gib:.12f}"]


def assert_same_record(run: RunDirectory, other: RunDirectory) -> None:
    assert run.path.name == other.path.name
    assert rows_without_times(run) == rows_without_times(other)
    assert_bit_equal(final_state(run)["state_dict"], final_state(other)["state_dict"])
    assert run.read_result()["top1_count"] == other.read_result()["top1_count"]


def held_bytes(folder: Path, *kinds: str) -> int:
    """Of whole shards (.tar) and of downloads in progress (.part)."""
    total = 0
    for entry in os.scandir(folder) if folder.exists() else ():
        if entry.name.endswith(kinds or (".tar", ".part")):
            try:
                total += entry.stat().st_size
            except FileNotFoundError:
                continue
    return total


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """The bytes in a cache's folder, sampled some hundred times a second; a file renamed meanwhile may be counted twice."""
    samples: list[int] = []
    is_done = threading.Event()

    def watch() -> None:
        while not is_done.wait(0.003):
            samples.append(held_bytes(folder))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        is_done.set()
        thread.join()


def test_a_shaky_server_changes_nothing(tiny_shards, files, local, tmp_path):
    bound = int(4.5 * max(map(len, files.values())))
    with serve(files, Shaky(error_probability=0.06, cut_probability=0.1, bytes_per_second=4e6, seed=1)) as server:
        args = remote_args(tiny_shards, tmp_path, server.url(f"/s-{{0..{NUM_SHARDS - 1}}}.tar"), bound)
        shard_cache = tmp_path / "cache" / "shards"
        with watched(shard_cache) as samples, pytest.warns(UserWarning, match=FETCHED_AGAIN):
            assert main(args) == 0
        assert 0.5 * bound < max(samples) <= bound
        counts = ShardCache(shard_cache, None).counts()
        assert counts.retries >= 3
        assert counts.downloads > NUM_SHARDS
        assert_same_record(run_of(args), local)
        assert {path.suffix for path in shard_cache.iterdir() if path.name[0] != "."} == {".tar"}
        # The index is there, so what the run is can be told without the server, and what it drew, too.
        server.requests.clear()
        assert resolve_run(args).run_dir == run_of(args).path
        assert main(["data", "plan", str(run_of(args).experiment_path)]) == 0
        assert server.requests == []


def test_a_window_larger_than_the_cache_warns_and_is_exact(tiny_shards, files, local, tmp_path):
    bound = int(2.2 * max(map(len, files.values())))
    with serve(files) as server:
        args = remote_args(tiny_shards, tmp_path, server.url(f"/s-{{0..{NUM_SHARDS - 1}}}.tar"), bound)
        with (
            watched(tmp_path / "cache" / "shards") as samples,
            pytest.warns(UserWarning, match=FETCHED_AGAIN),
            pytest.warns(UserWarning, match=r"a node reads .* GiB of shards at once, but data\.cache_gib="),
        ):
            assert main(args) == 0
        assert max(samples) <= bound
        assert_same_record(run_of(args), local)


def test_the_output_of_commands_trains_alike(tiny_shards, shards, local, tmp_path):
    args = remote_args(tiny_shards, tmp_path, f"pipe:cat {shards}/s-{{0..{NUM_SHARDS - 1}}}.tar")
    assert main(args) == 0
    assert_same_record(run_of(args), local)


def kill_when(condition, args: list[str]) -> None:
    """Runs `vitlight` with these arguments until the condition holds, and no longer."""
    with subprocess.Popen([sys.executable, "-m", "vitlight", *args], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        try:
            while not condition():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            process.send_signal(signal.SIGKILL)


def test_killed_while_it_fetches_the_same_command_goes_on(tiny_shards, files, local, tmp_path):
    bound = int(4.5 * max(map(len, files.values())))
    with serve(files, Shaky(bytes_per_second=4e5)) as server:
        source = server.url(f"/s-{{0..{NUM_SHARDS - 1}}}.tar")
        args = [*remote_args(tiny_shards, tmp_path, source, bound), "--data.num_workers=1"]
        shard_cache = tmp_path / "cache" / "shards"
        samples = []

        def is_fetching() -> bool:
            samples.append(held_bytes(shard_cache))
            return held_bytes(shard_cache, ".part") > 0

        kill_when(is_fetching, args)  # while it indexes
        assert len(list(shard_cache.glob("*.part"))) == 1
        server.shaky.bytes_per_second = 4e6

        def trains_and_fetches() -> bool:
            found = list((tmp_path / "runs").glob("tiny/*/metrics.jsonl"))
            return is_fetching() and bool(found) and len(found[0].read_text().splitlines()) >= 4

        kill_when(trains_and_fetches, args)
        assert list(shard_cache.glob("*.part"))
        with watched(shard_cache) as more, pytest.warns(UserWarning, match=FETCHED_AGAIN):
            assert main(args) == 0
        assert max(samples + more) <= bound
    assert_same_record(run_of(args), local)
    left = {path.suffix for path in shard_cache.iterdir() if path.name[0] != "."}
    assert left == {".tar"}
    for path in shard_cache.glob("*.tar"):
        assert path.read_bytes() == files[f"/s-{path.stem.rpartition('-')[2]}.tar"]


def read_as_a_node(rank: int, urls: list[str], folder: Path, results) -> None:
    """What one of two machines does in 12 steps: its rank's batches, through a cache of its own."""
    from tests.data.test_loader import open_node
    from vitlight.data.loader import World

    machine = open_node(urls, folder / "index", folder / str(rank), None, 2, 2, 16)
    labels = [label for batch in machine.loader(World(rank, 2)) for label in batch["label"].tolist()]
    requests = list(machine.plan.micro_batches(0, 12, rank, 2))
    assert labels == [label for request in requests for label in machine.index.label[request.ids].tolist()]
    first_epoch = [int(i) for request in requests for i in request.ids[request.epochs == 0]]
    needed = {int(s) for request in requests for s in machine.index.shard_of(request.ids)}
    results.put((rank, first_epoch, needed, machine.cache.counts().downloads))


def test_two_nodes_share_an_epoch_and_fetch_only_their_parts(files, tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with serve(files, Shaky(bytes_per_second=5e6)) as server:
        urls = [server.url(path) for path in files]
        num_images = len(load_index(urls, tmp_path / "index"))
        server.requests.clear()
        processes = [context.Process(target=read_as_a_node, args=(r, urls, tmp_path, results)) for r in range(2)]
        for process in processes:
            process.start()
        found = sorted(results.get(timeout=60) for _ in processes)
        for process in processes:
            process.join(30)
        assert [process.exitcode for process in processes] == [0, 0]
        requests = Counter(int(path.split("-")[1].split(".")[0]) for path, _ in server.requests)
    (_, ids, needed, downloads), (_, other_ids, other_needed, other_downloads) = found
    assert sorted(ids + other_ids) == list(range(num_images))
    assert len(ids) - len(other_ids) in (-1, 0, 1)
    # Each has a stream to itself: half of the shards, and the one that is cut between them.
    assert len(needed & other_needed) <= 1
    assert requests == Counter(needed) + Counter(other_needed)
    assert (downloads, other_downloads) == (len(needed), len(other_needed))

import threading
import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.conftest import tiny_sample
from tests.data.shaky_server import Shaky, ShakyServer, serve
from tests.data.test_cache import HASTY, kept, used_bytes
from tests.data.test_prefetch import wait_until
from vitlight.data.augment import Augmentation
from vitlight.data.batches import ImageBatches, ImageSource
from vitlight.data.cache import ShardCache
from vitlight.data.image_loader import Requests, build_loader
from vitlight.data.index import ShardIndex, load_index
from vitlight.data.loader import World, evaluation_requests, training_requests
from vitlight.data.plan import DataPlan, EvalPlan, PlanSource
from vitlight.data.shards import write_shards
from vitlight.data.store import open_store
from vitlight.data.subset import AllRows
from vitlight.errors import InputError

NUM_SHARDS, PER_SHARD = 12, 8
ALONE = World()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """12 shards of 8 images."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards((tiny_sample(i, "train") for i in range(NUM_SHARDS * PER_SHARD)), folder, samples_per_shard=PER_SHARD)
    return {f"/{path.name}": path.read_bytes() for path in sorted(folder.glob("*.tar"))}


@dataclass
class Node:
    """One machine: its cache, and what its ranks read through it."""

    cache: ShardCache
    index: ShardIndex
    plan: DataPlan

    def requests(self, world=ALONE, start_step=0, num_steps=12, num_workers=0):
        return training_requests(
            self.plan,
            [self.index],
            self.cache,
            world,
            start_step=start_step,
            num_steps=num_steps,
            num_workers=num_workers,
        )

    def loader(self, world=ALONE, start_step=0, num_steps=12, num_workers=0):
        store = open_store(self.index.shards, self.index.num_bytes, self.index.shard_digests, self.cache)
        batches = ImageBatches(
            [ImageSource(self.index, store)],
            size=28,
            channels=3,
            seed=0,
            augmentation=Augmentation(),
            eval_crop=1.0,
        )
        length = (num_steps - start_step) * world.num_micro
        requests = Requests(length, lambda: self.requests(world, start_step, num_steps, num_workers))
        return build_loader(batches, requests, num_workers)


def open_node(urls, index_dir, folder, max_bytes=None, window_shards=64, num_streams=64, batch=8, repeats=1) -> Node:
    cache = ShardCache(folder / "shards", max_bytes, HASTY)
    index = load_index(urls, index_dir, cache=ShardCache(folder / "indexed", None, HASTY))
    plan = DataPlan(
        PlanSource(AllRows(index.shard_start), len(index)),
        seed=3,
        global_batch_size=batch,
        window_shards=window_shards,
        num_streams=num_streams,
        num_repeats=repeats,
    )
    return Node(cache, index, plan)


def node(server: ShakyServer, folder, *settings, **more) -> Node:
    """Indexed already; the server counts from here on."""
    opened = open_node([server.url(path) for path in server.files], folder / "index", folder, *settings, **more)
    server.requests.clear()
    server.bytes_sent.clear()
    return opened


def shards_of(node: Node, requests) -> list[set[int]]:
    """The shards that each request's samples lie in."""
    return [set(node.index.shard_of(request.ids).tolist()) for request in requests]


def fetched(server: ShakyServer) -> Counter[int]:
    return Counter(int(path.split("-")[1].split(".")[0]) for path, _ in server.requests)


def test_an_index_is_built_in_one_pass_and_opened_without_a_request(files, tmp_path):
    with serve(files) as server:
        cache = ShardCache(tmp_path / "shards", None, HASTY)
        urls = server.url("/shard-{000000..000011}.tar")
        index = load_index(urls, tmp_path / "index", cache=cache)
        assert fetched(server) == Counter(range(NUM_SHARDS))
        again = load_index(urls, tmp_path / "index", cache=ShardCache(tmp_path / "other", None, HASTY))
        assert len(server.requests) == NUM_SHARDS
        assert (again.digest, again.shard_digests) == (index.digest, index.shard_digests)
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("start_step", [0, 5, 11, 17])
@pytest.mark.parametrize(("window_shards", "num_streams"), [(4, 1), (4, 2), (3, 3)])
def test_a_resume_reads_no_more_than_its_window_before_its_first_batch(
    files, tmp_path, start_step, window_shards, num_streams
):
    with serve(files) as server:
        machine = node(server, tmp_path, window_shards=window_shards, num_streams=num_streams)
        iterator = iter(machine.loader(start_step=start_step, num_steps=24))
        first = next(iterator)
        sent, requests = server.bytes_sent.total(), server.requests.copy()
        del iterator
        at_start = {use.shard for use in machine.plan.shard_uses(start_step, start_step + 1)}
        # A batch that begins at the end of a window goes on in the next one.
        assert len(at_start) <= window_shards * (1 if start_step == 0 else 2)
        assert {path for path, _ in requests} == {list(files)[i] for i in at_start}
        assert sent == sum(len(list(files.values())[i]) for i in at_start)
        (request,) = machine.plan.micro_batches(start_step, start_step + 1)
        assert first["label"].tolist() == machine.index.label[request.ids].tolist()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_remote_epoch_is_the_local_one(files, tmp_path, num_workers):
    folder = tmp_path / "local"
    folder.mkdir()
    for path, data in files.items():
        (folder / path[1:]).write_bytes(data)
    shaky = Shaky(error_probability=0.2, cut_probability=0.3, bytes_per_second=4e6, seed=5)
    with serve(files, shaky) as server:
        machine = node(server, tmp_path, window_shards=4, num_streams=2)
        remote = list(machine.loader(num_workers=num_workers))
        assert machine.cache.counts().downloads == NUM_SHARDS
    index = load_index(folder)
    assert index.digest == machine.index.digest
    local = Node(machine.cache, index, machine.plan)
    for left, right in zip(remote, local.loader(), strict=True):
        assert torch.equal(left["image"], right["image"])
        assert torch.equal(left["label"], right["label"])
    ids = np.concatenate([request.ids for request in machine.requests()])
    assert sorted(ids.tolist()) == list(range(NUM_SHARDS * PER_SHARD))


def test_the_cache_stays_in_its_bound_where_the_window_does_not_fit(files, tmp_path):
    largest = max(map(len, files.values()))
    with serve(files, Shaky(cut_probability=0.2, bytes_per_second=20e6)) as server:
        machine = node(server, tmp_path, max_bytes=int(2.5 * largest), window_shards=6, num_streams=3)
        most, is_done = [0], threading.Event()

        def sample() -> None:
            while not is_done.wait(0.002):
                most[0] = max(most[0], used_bytes(machine.cache.folder)) if machine.cache.folder.exists() else 0

        watcher = threading.Thread(target=sample)
        watcher.start()
        try:
            with pytest.warns(UserWarning, match=r"a node reads .* GiB of shards at once, but data\.cache_gib="):
                batches = list(machine.loader())
        finally:
            is_done.set()
            watcher.join()
        assert largest < most[0] <= 2.5 * largest
        assert machine.cache.counts().downloads > NUM_SHARDS
    labels = [machine.index.label[request.ids].tolist() for request in machine.plan.micro_batches(0, 12)]
    assert [batch["label"].tolist() for batch in batches] == labels


def test_two_nodes_fetch_only_what_their_slices_need(files, tmp_path):
    """Two streams of two ranks: each node reads one half of the shards of an epoch, and that the piece where they meet."""
    seen, shares = [], []
    with serve(files) as server:
        for rank in range(2):
            machine = node(server, tmp_path / str(rank), window_shards=2, num_streams=2)
            world = World(rank, 2)
            labels = [batch["label"] for batch in machine.loader(world)]
            ids = np.concatenate([request.ids for request in machine.requests(world)])
            assert machine.index.label[ids].tolist() == torch.cat(labels).tolist()
            seen += ids.tolist()
            needed = set.union(*shards_of(machine, machine.plan.micro_batches(0, 12, rank, 2)))
            planned = {use.shard for use in machine.plan.shard_uses(0, 12, rank, 2)}
            assert fetched(server) == Counter(planned)
            assert needed <= planned
            shares.append(planned)
    assert sorted(seen) == list(range(NUM_SHARDS * PER_SHARD))
    # 12 shards of equal size cut in two: six and six, with nothing at the border.
    assert [len(share) for share in shares] == [6, 6]
    assert not shares[0] & shares[1]


def test_a_batch_larger_than_its_slice_warns_no_node_that_has_room(files, tmp_path):
    size = sum(map(len, files.values())) // NUM_SHARDS
    with serve(files) as server:
        for name, room, window, streams, repeats, world, is_warned in (
            ("all of it", 4.1, 4, 4, 1, World(), False),
            ("one short", 3.9, 4, 4, 1, World(), True),
            ("a half", 2.1, 4, 4, 1, World(0, 2), False),
            ("less than a half", 1.9, 4, 4, 1, World(0, 2), True),
            ("two ranks of one node", 3.9, 4, 4, 1, World(0, 2, 1, 2), True),
            ("one stream is read by both", 2.1, 4, 1, 1, World(0, 2), True),
            ("repeats fall to both", 2.1, 4, 4, 2, World(0, 2), True),
        ):
            machine = node(server, tmp_path / name, int(room * size), window, streams, repeats=repeats)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                requests = machine.requests(world)
                next(requests)
                requests.close()
            assert [str(warning.message).startswith("a node reads") for warning in caught] == [True] * is_warned, name


def test_nothing_is_fetched_for_local_shards_or_after_the_end(files, tmp_path):
    with serve(files) as server:
        machine = node(server, tmp_path, window_shards=2, num_streams=2)
        requests = machine.requests(num_steps=3)
        next(requests)
        assert num_fetching_threads() > 0
        assert len(list(requests)) == 2
        assert num_fetching_threads() == 0
        assert len(kept(machine.cache.folder)) <= 4
        assert set(fetched(server)) <= {use.shard for use in machine.plan.shard_uses(0, 3)}
    (tmp_path / "local.tar").write_bytes(files["/shard-000000.tar"])
    index = load_index(tmp_path / "local.tar")
    plan = DataPlan(PlanSource(AllRows(index.shard_start), len(index)), seed=0, global_batch_size=8)
    requests = Node(machine.cache, index, plan).requests()
    assert sorted(next(requests).ids.tolist()) == list(range(8))
    assert num_fetching_threads() == 0


def test_evaluation_fetches_ahead_and_each_shard_once(files, tmp_path):
    with serve(files, Shaky(bytes_per_second=1e6)) as server:
        machine = node(server, tmp_path)
        ids = np.flatnonzero(np.arange(NUM_SHARDS * PER_SHARD) % 4 == 1)  # two of each shard
        for rank in range(2):
            requests = evaluation_requests(
                EvalPlan(ids, 3), [machine.index], machine.cache, World(rank, 2, 1, 2), num_workers=0
            )
            first = next(requests)
            assert first.ids.tolist() == ids[3 * rank : 3 * rank + 3].tolist()
            read = [next(requests).ids]
            wait_until(lambda: machine.cache.counts().downloads == (8, 12)[rank])  # noqa: B023
            rest = [first.ids, *read, *(request.ids for request in requests)]
            assert np.concatenate(rest).tolist() == [i for b in range(4) for i in ids[6 * b + 3 * rank :][:3]]
            assert num_fetching_threads() == 0
        # The first rank's batches need shards 0, 1; 3, 4; 6, 7; 9, 10, the second's the others and half of these.
        assert fetched(server) == Counter(range(NUM_SHARDS))


@pytest.mark.filterwarnings("ignore:the images of an evaluation lie in")
def test_an_evaluation_finds_room_beside_what_training_holds(files, tmp_path):
    """Both fetch ahead; whatever they pin, there is room for a shard that is needed now (else: no room after 0.3 s)."""
    largest = max(map(len, files.values()))
    with serve(files) as server:
        machine = node(server, tmp_path, max_bytes=int(4.5 * largest), window_shards=4, num_streams=2)
        training = iter(machine.loader())
        for _ in range(5):
            next(training)
        wait_until(lambda: machine.cache.counts().downloads >= 5)
        ids = np.arange(0, NUM_SHARDS * PER_SHARD, 3)
        store = open_store(machine.index.shards, machine.index.num_bytes, machine.index.shard_digests, machine.cache)
        for _ in range(2):
            read: list[bytes] = []
            requests = evaluation_requests(EvalPlan(ids, 4), [machine.index], machine.cache, ALONE, num_workers=0)
            for request in requests:
                for i in request.ids.tolist():
                    shard = int(machine.index.shard_of(np.array([i]))[0])
                    read.append(store.read(shard, int(machine.index.offset[i]), int(machine.index.size[i])))
                assert used_bytes(machine.cache.folder) <= 4.5 * largest
            assert read == [tiny_sample(i, "train").image for i in ids.tolist()]
        assert len(list(training)) == 7


def test_an_evaluation_that_the_cache_does_not_hold_warns(files, tmp_path):
    ids = np.arange(4 * PER_SHARD + 1)  # five shards
    needed = sum(len(data) for data in list(files.values())[:5])
    with serve(files) as server:
        for room, is_warned in ((needed, False), (needed - 1, True)):
            machine = node(server, tmp_path / str(room), max_bytes=room)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                list(evaluation_requests(EvalPlan(ids, 8), [machine.index], machine.cache, ALONE, num_workers=0))
            assert ["every evaluation fetches them again" in str(each.message) for each in caught] == [True] * is_warned


def num_fetching_threads() -> int:
    return sum(thread.name.startswith("prefetch-") for thread in threading.enumerate())


def test_what_goes_wrong_while_fetching_stops_the_loader(files, tmp_path):
    with serve(dict(files)) as server:
        machine = node(server, tmp_path, window_shards=2, num_streams=1)
        last = list(machine.plan.shard_uses(0, 12))[-1].shard
        del server.files[list(files)[last]]
        with pytest.raises(InputError, match=rf"shard-0000{last:02d}\.tar: can't be fetched: HTTP 404"):
            list(machine.loader())

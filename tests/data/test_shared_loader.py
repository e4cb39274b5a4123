"""Batches from a loader that several share: bit for bit those of a loader of one's own, whatever becomes of it."""

import faulthandler
import gc
import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import tiny_sample
from vitlight.data import shared_link, shared_loader
from vitlight.data.augment import Augmentation
from vitlight.data.datamodule import ShardedImages
from vitlight.data.labels import LabelSource
from vitlight.data.mixing import Mixing
from vitlight.data.shard_index import ShardIndex
from vitlight.data.shared_process import LoaderProcess
from vitlight.errors import InputError

NUM_STEPS = 40
BATCH_SIZE = 16
DEADLINE_SECONDS = 60.0


NUM_BYTES = 1 << 24
# Five batches of these fill the loader's memory.
LARGE = {"image_size": 128, "global_batch_size": 64, "num_steps": 12}


class Served(LoaderProcess):
    """A loader, and what it has said in its log."""

    def __init__(self, folder):
        self.log = folder / "shared-loader.log"
        super().__init__(self.log, 2, NUM_BYTES)

    def counts(self):
        """Images decoded and handed out, of each stream in the order in which they ended, since the last call."""
        text = self.log.read_text()
        self.log.write_text("")
        return [
            tuple(int(number.replace(",", "")) for number in pair)
            for pair in re.findall(r"decoded ([\d,]+) images, handed out ([\d,]+)", text)
        ]

    def await_counts(self, num_streams=1):
        found, deadline = [], time.monotonic() + DEADLINE_SECONDS
        while len(found) < num_streams:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            found += self.counts()
        return found


@pytest.fixture(scope="module")
def loader_process(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("loader")) as served:
        yield served


@pytest.fixture
def served(loader_process):
    """A loader that nobody is attached to."""
    yield loader_process
    gc.collect()
    alive = Path(f"/proc/{loader_process.pid}/fd")
    deadline = time.monotonic() + DEADLINE_SECONDS
    while any(each.readlink().name.startswith("memfd:vitlight-shared") for each in alive.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    loader_process.counts()


def build(source, address=None, rank=0, num_ranks=1, num_micro=1, start=0, num_steps=NUM_STEPS, **changes):
    settings = {"num_classes": 4, "image_size": 28, "global_batch_size": BATCH_SIZE, **changes}
    data = ShardedImages(str(source / "train"), shared_loader=address, **settings)
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=num_ranks, accumulate_grad_batches=num_micro, num_nodes=1
    )
    data.prepare()
    data.start_step, data.num_steps = start, num_steps
    return data.train_dataloader()


def assert_same(batches, alone):
    count = 0
    for batch, its in zip(batches, alone, strict=True):
        assert batch.keys() == its.keys()
        assert batch["skipped"] == its["skipped"]
        for name in its.keys() - {"skipped"}:
            assert torch.equal(batch[name], its[name]), (count, name)
            assert batch[name].dtype == its[name].dtype
        assert batch["image"].stride() == its["image"].stride()
        count += 1
    return count


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"start": 23, "seed": 5},
        {"num_micro": 4, "channels": 1},
        {"num_repeats": 2, "global_batch_size": 24},
        {"mixing": Mixing(mixup_alpha=0.2, cutmix_alpha=1.0, per="sample")},
        {"mixing": Mixing(mixup_alpha=0.2), "augmentation": Augmentation(policy="randaugment_timm", magnitude=9.0)},
    ],
    ids=["plain", "resumed", "grey, accumulated", "repeats", "mixed by image", "mixed, augmented"],
)
def test_batches_are_those_of_a_loader_of_ones_own(tiny_shards, served, changes):
    micro = changes.get("num_micro", 1)
    loader = build(tiny_shards, served.address, **changes)
    assert len(loader) == (NUM_STEPS - changes.get("start", 0)) * micro
    assert assert_same(loader, build(tiny_shards, **changes)) == len(loader)


@pytest.mark.parametrize(("num_ranks", "num_micro"), [(2, 2), (4, 1)])
def test_ranks_take_their_parts_of_each_batch(tiny_shards, served, num_ranks, num_micro):
    ranks = [build(tiny_shards, served.address, rank, num_ranks, num_micro) for rank in range(num_ranks)]
    alone = [build(tiny_shards, None, rank, num_ranks, num_micro) for rank in range(num_ranks)]
    for parts, its in zip(zip(*ranks, strict=True), zip(*alone, strict=True), strict=True):
        assert_same(parts, its)
    images = NUM_STEPS * BATCH_SIZE
    assert served.await_counts() == [(images, images)]


def test_several_cells_cost_one_decode_and_mixing_is_their_own(tiny_shards, served):
    different = ({}, {"mixing": Mixing(mixup_alpha=0.5, per="sample")}, {"num_micro": 2}, {"num_classes": 9})
    cells = [build(tiny_shards, served.address, **changes) for changes in different]
    alone = [build(tiny_shards, **changes) for changes in different]
    its = [iter(each) for each in cells]
    expected = [iter(each) for each in alone]
    for step in range(NUM_STEPS):
        for changes, shared, own in zip(different, its, expected, strict=True):
            for _ in range(changes.get("num_micro", 1)):
                assert_same([next(shared)], [next(own)]), step
    assert [next(each, None) for each in its] == [None] * 4
    images = NUM_STEPS * BATCH_SIZE
    assert served.await_counts() == [(images, 4 * images)]


def test_other_images_are_another_stream(tiny_shards, served):
    different = (
        {},
        {"seed": 1},
        {"augmentation": Augmentation(flip=False)},
        {"image_size": 14},
        {"train_fraction": 0.5},
    )
    cells = [iter(build(tiny_shards, served.address, **changes)) for changes in different]
    first = [next(cell) for cell in cells]
    assert_same(first, [next(iter(build(tiny_shards, **changes))) for changes in different])
    for cell in cells:
        cell.close()
    assert len(served.await_counts(5)) == 5


@pytest.mark.parametrize("changes", [{}, LARGE], ids=["slots enough", "few slots"])
def test_kept_batches_keep_their_content(tiny_shards, served, changes):
    kept = list(build(tiny_shards, served.address, **changes))
    assert assert_same(kept, build(tiny_shards, **changes)) == changes.get("num_steps", NUM_STEPS)


def write_tar(folder, damaged=()):
    """30 images of several labels each in one shard; those damaged break off in the middle of their data."""
    import webdataset

    (folder / "train").mkdir()
    with webdataset.TarWriter(str(folder / "train" / "x.tar"), encoder=False) as writer:
        for i in range(30):
            image = bytearray(tiny_sample(i * 3 + 1, "train").image)  # a PNG
            if i in damaged:
                image[100:-100] = bytes(len(image) - 200)
            labels = json.dumps({"label": [i % 4, *range(i % 3)]}).encode()
            writer.write({"__key__": f"k{i}", "png": bytes(image), "json": labels})


def test_labels_of_multi_label_images_come_with_them(tmp_path, served):
    write_tar(tmp_path)
    changes = {"labels": LabelSource(multi=True), "num_micro": 2}
    assert assert_same(build(tmp_path, served.address, **changes), build(tmp_path, **changes)) == 2 * NUM_STEPS


def test_a_damaged_image_is_met_as_it_would_be_alone(tmp_path, served):
    write_tar(tmp_path, damaged=(7, 19))
    changes = {"labels": LabelSource(multi=True), "num_micro": 2}
    loader = build(tmp_path, served.address, max_skipped_samples=5, **changes)
    shared = list(loader)
    assert assert_same(shared, build(tmp_path, max_skipped_samples=5, **changes)) == 2 * NUM_STEPS
    assert {fault.split("'")[1] for batch in shared for fault in batch["skipped"]} == {"k7", "k19"}
    with pytest.raises(InputError, match=r"image 'k(7|19)' in shard .*x\.tar can't be decoded"):
        list(build(tmp_path, served.address, **changes))


def test_a_loader_that_is_killed_leaves_the_cells_to_themselves(tiny_shards, tmp_path):
    with Served(tmp_path) as served:
        loader, alone = iter(build(tiny_shards, served.address)), iter(build(tiny_shards))
        assert_same([next(loader) for _ in range(9)], [next(alone) for _ in range(9)])
        os.kill(served.pid, signal.SIGKILL)
    with pytest.warns(UserWarning, match="it has ended; this run loads its images itself") as warned:
        assert assert_same(loader, alone) == NUM_STEPS - 9
    assert len(warned) == 1


def test_a_loader_whose_runner_is_gone_serves_until_nobody_is_attached(tiny_shards, tmp_path):
    with Served(tmp_path) as served:
        loader, alone = iter(build(tiny_shards, served.address)), iter(build(tiny_shards))
        assert_same([next(loader)], [next(alone)])
        served._owner.close()
        assert assert_same(loader, alone) == NUM_STEPS - 1
        assert served._process.wait(DEADLINE_SECONDS) == 0


def test_a_cell_that_writes_to_its_batch_harms_itself_alone(tiny_shards, served):
    writer = os.fork()
    if not writer:
        faulthandler.disable()
        next(iter(build(tiny_shards, served.address)))["image"].zero_()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == -signal.SIGSEGV
    assert assert_same(build(tiny_shards, served.address), build(tiny_shards)) == NUM_STEPS


def test_where_no_loader_answers_the_cell_loads_for_itself(tiny_shards):
    with pytest.warns(UserWarning, match="data.shared_loader=vitlight-loader-none: no loader answers there"):
        assert assert_same(build(tiny_shards, "vitlight-loader-none/3"), build(tiny_shards)) == NUM_STEPS


def test_a_loader_of_other_code_is_not_used(tiny_shards, served, monkeypatch):
    monkeypatch.setattr(shared_loader, "CODE", (*shared_link.CODE[:-1], "numpy of tomorrow"))
    with pytest.warns(UserWarning, match="it runs other code or other libraries than this cell; this run loads"):
        assert assert_same(build(tiny_shards, served.address), build(tiny_shards)) == NUM_STEPS


def test_batches_without_room_are_refused(tiny_shards, served):
    changes = {"image_size": 128, "global_batch_size": 128, "num_steps": 2}
    with pytest.warns(UserWarning, match="3 batches of each of 1 data sets take .* but --share-loader-gib is 0.0156"):
        assert assert_same(build(tiny_shards, served.address, **changes), build(tiny_shards, **changes)) == 2


def test_a_run_of_several_machines_is_refused(tiny_shards):
    data = ShardedImages(str(tiny_shards / "train"), 4, 28, BATCH_SIZE, shared_loader="somewhere")
    data.trainer = SimpleNamespace(global_rank=0, world_size=4, accumulate_grad_batches=1, num_nodes=2)
    data.prepare()
    data.num_steps = 2
    with pytest.raises(InputError, match=r"data\.shared_loader=somewhere serves one machine, but a run has 2"):
        data.train_dataloader()


def test_a_killed_cell_holds_nobody_up_and_leaves_nothing_behind(tiny_shards, served):
    told, tells = os.pipe()
    reader = os.fork()
    if not reader:
        held = []
        for batch in build(tiny_shards, served.address, **LARGE):
            held.append(batch)
            if len(held) == 3:
                os.write(tells, b"3")
                time.sleep(DEADLINE_SECONDS)
        os._exit(0)
    loader, alone = iter(build(tiny_shards, served.address, **LARGE)), iter(build(tiny_shards, **LARGE))
    assert os.read(told, 1) == b"3"
    assert_same([next(loader) for _ in range(4)], [next(alone) for _ in range(4)])
    os.kill(reader, signal.SIGKILL)
    os.waitpid(reader, 0)
    files = [str(each.readlink()) for each in Path(f"/proc/{served.pid}/fd").iterdir()]
    assert any(each.startswith("/memfd:vitlight-shared-loader") for each in files)
    assert not any(each.startswith("/dev/shm") for each in files)
    assert assert_same(loader, alone) == LARGE["num_steps"] - 4
    for descriptor in (told, tells):
        os.close(descriptor)


def test_cells_that_start_a_little_later_are_waited_for(tiny_shards, served):
    for cell in ("0", "1"):
        assert served.expect(cell)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(list, build(tiny_shards, f"{served.address}/0", **LARGE))
        time.sleep(1.0)
        assert not first.done()  # more steps than slots
        second = list(build(tiny_shards, f"{served.address}/1", **LARGE))
        assert assert_same(second, first.result()) == LARGE["num_steps"]
    images = LARGE["num_steps"] * LARGE["global_batch_size"]
    assert served.await_counts() == [(images, 2 * images)]


def test_the_same_index_at_another_place_is_not_taken_for_the_same(tiny_shards):
    loader = build(tiny_shards, "nobody")
    key = shared_link.stream_key(loader._batches, loader._plan)
    assert key == shared_link.stream_key(build(tiny_shards, None).dataset.batches, loader._plan)
    index: ShardIndex = loader._batches.sources[0].index
    object.__setattr__(index, "shards", ("elsewhere.tar", *index.shards[1:]))
    assert shared_link.stream_key(loader._batches, loader._plan) != key

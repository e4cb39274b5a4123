"""Batches in slots: reused only when nobody holds them, the same as batches that travel alone."""

import gc
import pickle

import numpy as np
import pytest
import torch

from vitlight.data.augment import Augmentation
from vitlight.data.batches import ImageBatches, ImageSource
from vitlight.data.handover import SentBatch, SlotPool
from vitlight.data.image_loader import Requests, build_loader
from vitlight.data.index import load_index
from vitlight.data.plan import DataPlan, PlanSource
from vitlight.data.store import LocalStore
from vitlight.data.subset import AllRows


def received(pool: SlotPool, slot: int, shape=(2, 3, 3, 1)) -> dict:
    """What the training process gets of a batch in this slot, without another process."""
    return pickle.loads(pickle.dumps(SentBatch(pool, slot, shape, {"label": torch.tensor([1, 2])})))


def test_a_slot_is_free_when_the_last_tensor_over_it_is_gone():
    pool = SlotPool(2, 18)
    leased = [pool.lease(1) for _ in range(6)]
    assert leased == [1, 3, 5, 7, 9, None]  # those of worker 1
    pool.write(3, (2, 3, 3, 1)).copy_(torch.arange(18, dtype=torch.uint8).view(2, 3, 3, 1))
    batch = received(pool, 3)
    assert batch["image"].shape == (2, 1, 3, 3)
    assert batch["label"].tolist() == [1, 2]
    part = batch["image"][1, 0, 2]
    array = part.numpy()
    assert pool.lease(1) is None
    del batch
    gc.collect()
    assert pool.lease(1) is None  # a view of a view holds it
    assert part.tolist() == [15, 16, 17]
    del part
    assert pool.lease(1) is None
    assert array.tolist() == [15, 16, 17]
    del array
    assert pool.lease(1) == 3


def test_batches_outlive_their_pool():
    pool = SlotPool(1, 18)
    pool.write(0, (18,)).fill_(7)
    batch = received(pool, 0)
    del pool
    gc.collect()
    assert (batch["image"] == 7).all()


@pytest.fixture(scope="module")
def made(tiny_shards):
    index = load_index(tiny_shards / "train")
    batches = ImageBatches(
        [ImageSource(index, LocalStore(index.shards))],
        size=28,
        channels=3,
        seed=0,
        augmentation=Augmentation(),
        eval_crop=1.0,
    )
    return batches, DataPlan(PlanSource(AllRows(index.shard_start), len(index)), seed=0, global_batch_size=16)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
@pytest.mark.parametrize("batch_size", [16, 4], ids=["in slots", "too large for slots"])
def test_kept_batches_keep_their_content(made, batch_size):
    batches, plan = made
    loader = build_loader(batches, Requests(30, lambda: plan.micro_batches(0, 30)), 2, batch_size)
    for _ in range(2):
        kept = list(loader)  # 30 batches, more than there are slots
        for step, batch in enumerate(kept):
            alone = batches[plan.batch(step)]
            assert batch.keys() == alone.keys()
            assert torch.equal(batch["image"], alone["image"])
            assert batch["image"].stride() == alone["image"].stride()
            assert batch["label"].tolist() == alone["label"].tolist()
            assert batch["skipped"] == []


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
def test_slots_are_used_again(made):
    batches, plan = made
    loader = build_loader(batches, Requests(60, lambda: plan.micro_batches(0, 60)), 2, 16)
    addresses = {}
    for step, batch in enumerate(loader):
        assert np.array_equal(batch["label"], batches.locate(plan.batch(step).ids)[1])
        addresses.setdefault(batch["image"].data_ptr(), []).append(step)
    assert len(addresses) <= 10
    assert sum(map(len, addresses.values())) == 60


def test_an_iteration_broken_off_leaves_nothing_behind(made):
    batches, plan = made
    loader = build_loader(batches, Requests(40, lambda: plan.micro_batches(0, 40)), 1, 16)
    first = [next(iter(loader)) for _ in range(3)]
    for batch in first:
        assert torch.equal(batch["image"], batches[plan.batch(0)]["image"])

"""What a shared loader keeps and drops: every reader gets every step, whole, whatever the others do."""

import random
from collections import Counter

import numpy as np
import pytest

from vitlight.data.plan import BatchRequest
from vitlight.data.shared_stream import Reader, Stream

CHUNKS = {low: BatchRequest(*(np.zeros(4, np.int64) for _ in range(3))) for low in (0, 4)}


class Loader:
    """A stream whose tasks and answers are done here, and whose slots hold what was written to them."""

    def __init__(self, limit):
        self.content = {}
        self.decoded = Counter()
        self.taken = {}  # reader -> steps, in order
        self.inbox = {}
        self.stream = Stream(limit, lambda slot: self.content.pop(slot, None))

    def join(self, start, stop, ahead=2):
        reader = Reader(start, stop, ahead, 8)
        self.stream.join(reader)
        self.taken[reader], self.inbox[reader] = [], {}
        self.ask(reader)
        return reader

    def ask(self, reader):
        while reader.asked < min(reader.start + len(self.taken[reader]) + reader.ahead, reader.stop):
            self.stream.want(reader, reader.asked, CHUNKS)

    def decode(self, task):
        """The worker writes; nobody may be reading there."""
        self.content.setdefault(task.slot, {})[task.low] = task.step
        for reader, slots in self.inbox.items():
            assert all(slot != task.slot or step == task.step for step, slot in slots.items()), reader
        self.decoded[task.step, task.low] += 1
        self.stream.done(task, "told")

    def work(self):
        while self.stream.tasks:
            self.decode(self.stream.tasks.popleft())

    def deliver(self):
        while self.stream.ready:
            ready = self.stream.ready.popleft()
            if ready.reader in self.inbox:
                self.inbox[ready.reader][ready.step] = ready.slot

    def take(self, reader):
        """The next step, if it is there; the one before is given back. Whether there was one."""
        step = reader.start + len(self.taken[reader])
        self.work()
        self.deliver()
        if step not in self.inbox[reader]:
            return False
        for before in [old for old in self.inbox[reader] if old < step]:
            if self.inbox[reader].pop(before) is not None:
                self.stream.free(reader, before)
        slot = self.inbox[reader][step]
        if slot is not None:
            assert self.content[slot] == {0: step, 4: step}
        self.taken[reader].append(step)
        self.ask(reader)
        return True

    def leave(self, reader):
        del self.inbox[reader]
        self.stream.leave(reader)


def test_readers_side_by_side_share_every_decode():
    loader = Loader(4)
    readers = [loader.join(0, 50) for _ in range(4)]
    while any(len(loader.taken[reader]) < 50 for reader in readers):
        assert all(loader.take(reader) for reader in readers)
    assert set(loader.decoded.values()) == {1}
    assert (loader.stream.num_decoded, loader.stream.num_handed_out) == (50 * 8, 4 * 50 * 8)


@pytest.mark.parametrize("seed", range(12))
def test_every_reader_gets_all_its_steps_whatever_the_others_do(seed):
    rng = random.Random(seed)
    loader = Loader(rng.choice([3, 4, 9]))
    readers = [
        loader.join(start := rng.choice([0, 0, 3, 40]), start + rng.randint(1, 60), rng.randint(1, 6)) for _ in range(4)
    ]
    speeds = {reader: rng.choice([0.1, 0.5, 1.0]) for reader in readers}
    idle = 0
    while readers:
        done = False
        for reader in [each for each in readers if rng.random() < speeds[each]]:
            done |= loader.take(reader)
        for reader in list(readers):
            if len(loader.taken[reader]) == reader.stop - reader.start or rng.random() < 0.002:
                loader.leave(reader)
                readers.remove(reader)
        if rng.random() < 0.02:
            loader.stream.set_limit(rng.randint(3, 9))
        if rng.random() < 0.02 and len(loader.taken) < 9:
            start = rng.choice([0, 10])
            readers.append(loader.join(start, start + 30))
            speeds[readers[-1]] = 1.0
        loader.stream.wait(0.25)
        idle = 0 if done else idle + 1
        assert idle < 1000, "nobody gets anything any more"
    for reader, steps in loader.taken.items():
        assert steps == list(range(reader.start, reader.start + len(steps)))


def run_ahead(loader, reader):
    while loader.take(reader):
        pass
    return len(loader.taken[reader])


def test_a_fast_reader_waits_for_a_slow_one_and_leaves_it_behind_when_its_patience_is_over():
    loader = Loader(8)
    fast, slow = loader.join(0, 1000), loader.join(0, 1000)
    assert run_ahead(loader, fast) == 8  # all slots hold what the slow one has yet to see
    for _ in range(4):
        loader.stream.wait(5.0)
        assert loader.take(slow)
        run_ahead(loader, fast)
    assert len(loader.taken[fast]) - len(loader.taken[slow]) <= 8
    assert max(loader.decoded.values()) == 1
    loader.stream.wait(30.0)
    assert slow.is_left
    assert run_ahead(loader, fast) == 1000
    while loader.take(slow):
        loader.stream.wait(0.25)
    assert loader.taken[slow] == list(range(1000))


def test_one_that_has_caught_up_shares_again():
    loader = Loader(16)
    fast, slow = loader.join(0, 300), loader.join(0, 300)
    run_ahead(loader, fast)
    loader.stream.wait(31.0)
    for _ in range(100):
        assert loader.take(fast)
    assert slow.is_left
    while len(loader.taken[slow]) < len(loader.taken[fast]) - 2:
        assert loader.take(slow)
    assert not slow.is_left
    decoded = sum(loader.decoded.values())
    for _ in range(180):
        assert loader.take(fast)
        assert loader.take(slow)
    assert sum(loader.decoded.values()) - decoded <= 2 * 184


def test_a_reader_that_comes_a_little_later_finds_what_was_decoded():
    loader = Loader(16)
    first = loader.join(0, 100)
    while len(loader.taken[first]) < 10:
        assert loader.take(first)
    second = loader.join(0, 100)
    for _ in range(90):
        loader.take(first)
        loader.take(second)
    assert max(loader.decoded.values()) == 1


def test_readers_far_apart_do_not_wait_for_each_other():
    loader = Loader(6)
    behind, ahead = loader.join(0, 500), loader.join(5000, 5500)
    assert run_ahead(loader, ahead) == 500
    assert run_ahead(loader, behind) == 500


def test_what_could_not_be_decoded_is_left_to_each_reader():
    loader = Loader(4)
    readers = [loader.join(0, 3), loader.join(0, 3)]
    task = loader.stream.tasks.popleft()
    loader.stream.done(task, None)
    assert all(loader.take(reader) for reader in readers)
    assert [loader.inbox[reader][0] for reader in readers] == [None, None]
    assert all(loader.take(reader) for reader in readers)
    assert [loader.inbox[reader][1] is None for reader in readers] == [False, False]


def test_who_waits_for_slots_that_readers_keep_is_told_to_decode_by_itself():
    loader = Loader(3)
    keeps = loader.join(0, 3, ahead=3)
    loader.work()
    loader.deliver()
    assert sorted(loader.inbox[keeps]) == [0, 1, 2]
    other = loader.join(10, 12)
    for _ in range(10):
        loader.stream.wait(0.25)
    assert loader.take(other)
    assert loader.inbox[other] == {10: None}


def test_memory_beyond_a_lower_limit_is_given_back():
    given_back = []
    stream = Stream(6, given_back.append)
    reader = Reader(0, 6, 6, 8)
    stream.join(reader)
    for step in range(6):
        stream.want(reader, step, CHUNKS)
    while stream.tasks:
        stream.done(stream.tasks.popleft(), "told")
    stream.free(reader, 4)
    stream.set_limit(3)
    assert given_back == [4]  # what the reader holds goes when it is freed
    stream.free(reader, 5)
    assert given_back == [4, 5]
    stream.set_limit(6)
    stream.free(reader, 3)
    assert given_back == [4, 5]

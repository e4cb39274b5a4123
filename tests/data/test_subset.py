"""Choices of samples: exact, nested, keeping the shares of the classes, the same in any order of the shards."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.fake_index import Columns, columns
from vitlight.data import subset, thresholds
from vitlight.data.hashing import hash_words
from vitlight.data.subset import SubsetRule, choose_rows, class_quotas
from vitlight.errors import InputError


def rows_of(chosen) -> list[int]:
    found = [chosen.train.of_shard(shard) for shard in range(len(chosen.train.counts))]
    assert [len(rows) for rows in found] == chosen.train.counts.tolist()
    return np.concatenate(found).tolist()


def train_rows(index, **rule) -> set[int]:
    rows = rows_of(choose_rows(index, SubsetRule(**rule)))
    assert len(set(rows)) == len(rows)
    return set(rows)


def by_sorting(index, rule: SubsetRule) -> tuple[list[int], list[int]]:
    """The definition, spelled out with sorts: (rows trained on, rows held out)."""
    order = np.argsort(hash_words(1, index.key_hash), kind="stable")
    num_val = round(rule.val_fraction * len(index))
    held_out, left = np.sort(order[:num_val]), np.sort(order[num_val:])
    num = len(left) if rule.num_samples is None else rule.num_samples
    hashes = hash_words(2, rule.seed, index.key_hash)
    ranked = []
    for label in np.unique(index.label[left]):
        mine = left[index.label[left] == label]
        mine = mine[np.argsort(hashes[mine], kind="stable")]
        tie = int(hash_words(2, rule.seed, int(label))[0])
        ranked += [((2 * r + 1) / (2 * len(mine)), tie, int(row)) for r, row in enumerate(mine)]
    return sorted(row for _, _, row in sorted(ranked)[:num]), held_out.tolist()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_thresholds_choose_what_sorting_chooses(data):
    sizes = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) >= 4))
    n = sum(sizes)
    labels = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    # Few different hashes: ties must be broken too.
    salt, kinds = data.draw(st.integers(0, 5)), data.draw(st.sampled_from([2, 7, 1 << 60]))
    index = columns(sizes, labels, salt)
    index.key_hash = index.key_hash % np.uint64(kinds)
    val_fraction = data.draw(st.sampled_from([0.0, 0.1, 0.5]))
    num = data.draw(st.integers(1, n - round(val_fraction * n)))
    rule = SubsetRule(val_fraction=val_fraction, num_samples=num, seed=data.draw(st.integers(0, 3)))
    chosen = choose_rows(index, rule)
    trained_on, held_out = by_sorting(index, rule)
    assert rows_of(chosen) == trained_on
    assert chosen.val_rows.tolist() == held_out


def test_chunks_and_memory_change_nothing(monkeypatch, tmp_path):
    index = columns([1000, 0, 3000, 2000], np.random.default_rng(0).choice(10, size=6000))
    rule = SubsetRule(val_fraction=0.013, fraction=0.3)
    whole = choose_rows(index, rule, memory=tmp_path)
    assert not list(tmp_path.iterdir())  # a small choice isn't worth a file
    monkeypatch.setattr(thresholds, "_CHUNK_ROWS", 701)
    monkeypatch.setattr(subset, "_REMEMBERED_ROWS", 1)
    chunked = choose_rows(index, rule, memory=tmp_path / "selections")
    assert rows_of(chunked) == rows_of(whole)
    assert chunked.val_rows.tolist() == whole.val_rows.tolist()
    monkeypatch.setattr(subset, "find_thresholds", None)  # from here on it is read, not computed
    known = choose_rows(index, rule, memory=tmp_path / "selections")
    assert rows_of(known) == rows_of(whole)
    assert known.val_rows.tolist() == whole.val_rows.tolist()
    assert known.class_counts.tolist() == whole.class_counts.tolist()
    with pytest.raises(TypeError):  # another rule is computed anew
        choose_rows(index, SubsetRule(val_fraction=0.5), memory=tmp_path / "selections")
    (tmp_path / "selections" / next(iter((tmp_path / "selections").iterdir())).name).write_bytes(b"torn")
    monkeypatch.undo()
    monkeypatch.setattr(subset, "_REMEMBERED_ROWS", 1)
    assert rows_of(choose_rows(index, rule, memory=tmp_path / "selections")) == rows_of(whole)


def test_split_is_disjoint_complete_exact_nested_and_free_of_the_shards_order():
    index = columns([4000, 6000])
    chosen = choose_rows(index, SubsetRule(val_fraction=0.013))
    assert len(chosen.val_rows) == 130
    assert sorted([*rows_of(chosen), *chosen.val_rows]) == list(range(10_000))
    assert set(chosen.val_rows) < set(choose_rows(index, SubsetRule(val_fraction=0.05)).val_rows)
    assert len(choose_rows(index, SubsetRule()).val_rows) == 0
    order = np.random.default_rng(0).permutation(10_000)
    moved = Columns(np.array([0, 10_000]), index.label[order], index.key_hash[order])
    assert set(order[choose_rows(moved, SubsetRule(val_fraction=0.013)).val_rows]) == set(chosen.val_rows)


def test_subsets_are_nested_and_keep_the_class_shares():
    rng = np.random.default_rng(0)
    labels = np.sort(rng.choice(10, size=6000, p=np.arange(1, 11) / 55))  # class-ordered and unequal, as folders are
    index = columns([1500] * 4, labels)
    counts = np.bincount(labels)
    smaller: set[int] = set()
    for size in (7, 60, 600, 3000, 6000):
        chosen = train_rows(index, num_samples=size)
        assert len(chosen) == size
        assert smaller <= chosen
        smaller = chosen
        share = np.bincount(labels[list(chosen)], minlength=10)
        assert np.abs(share - counts * size / 6000).max() <= 1.0
    assert train_rows(index, num_samples=600, seed=1) != train_rows(index, num_samples=600, seed=0)
    assert train_rows(index, fraction=0.1) == train_rows(index, num_samples=600)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=20).filter(any), st.integers(0, 3), st.data())
def test_quotas_are_exact_fair_and_nested(counts, seed, data):
    counts = np.array(counts)
    total = int(counts.sum())
    smaller, larger = sorted(data.draw(st.lists(st.integers(0, total), min_size=2, max_size=2)))
    few, many = class_quotas(counts, smaller, seed), class_quotas(counts, larger, seed)
    assert (int(few.sum()), int(many.sum())) == (smaller, larger)
    assert np.all(few <= many)
    assert np.all(many <= counts)
    assert np.abs(many - counts * larger / total).max() <= 1.0


def test_as_many_of_each_class():
    labels = np.repeat([0, 1, 4], [5, 100, 40])
    index = columns([145], labels)
    with pytest.warns(
        UserWarning, match=r"per_class=10: 1 classes have fewer training images and give all \(class 0 has 5\)"
    ):
        chosen = train_rows(index, samples_per_class=10)
    assert np.bincount(labels[list(chosen)], minlength=5).tolist() == [5, 10, 0, 0, 10]
    assert train_rows(index, samples_per_class=3) < chosen


def test_a_long_tail_thins_the_classes_out_by_powers():
    labels = np.repeat(np.arange(5), 1000)
    index = columns([5000], labels)
    chosen = choose_rows(index, SubsetRule(long_tail_ratio=100))
    assert sorted(chosen.class_counts.tolist()) == [10, 31, 100, 316, 1000]
    tail = set(rows_of(chosen))
    assert np.bincount(labels[list(tail)]).tolist() == chosen.class_counts.tolist()
    assert train_rows(index, long_tail_ratio=1.0) == set(range(5000))
    half = train_rows(index, long_tail_ratio=100, fraction=0.5)
    assert half < tail
    assert len(half) == 728 or len(half) == 729  # half of 1457, ties to even
    assert train_rows(index, long_tail_ratio=100, seed=5) != tail


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"val_fraction": 1.0}, r"data\.val_fraction=1\.0 is not in \[0, 1\)"),
        ({"num_samples": 5, "fraction": 0.5}, r"data\.num_train_samples and data\.train_fraction are both given"),
        ({"fraction": 1.5}, r"data\.train_fraction=1\.5 is not in \(0, 1\]"),
        ({"samples_per_class": 0}, r"data\.num_train_samples_per_class=0 is not at least 1"),
        ({"long_tail_ratio": 0.5}, r"data\.long_tail_ratio=0\.5 is not at least 1"),
    ],
)
def test_impossible_rules_are_refused(rule, message):
    with pytest.raises(InputError, match=message):
        SubsetRule(**rule)


@pytest.mark.parametrize("size", [0, -1, 6001, 5995])
def test_impossible_subsets_are_refused(size):
    rule = SubsetRule(num_samples=size, val_fraction=0.001)
    with pytest.raises(
        InputError, match=rf"data\.num_train_samples={size} asks for {size} images, but there are 5994 .*0\.001"
    ):
        choose_rows(columns([6000]), rule)


def test_quotas_of_more_than_there_is_are_refused():
    with pytest.raises(InputError, match="subset of 301 images was asked for, but there are 300"):
        class_quotas(np.array([100, 200]), 301)

"""Few-shot subsets: nested, fixed by their seed, and those that training subsets are."""

import dataclasses

import numpy as np
import pytest

from tests.data.fake_index import Columns, columns
from vitlight.data import thresholds
from vitlight.data.subset import SubsetRule, choose_rows
from vitlight.errors import InputError
from vitlight.evaluation.subsets import choose_shots, training_ids

NONE = np.empty(0, np.int64)


def keys(index: Columns, ids: np.ndarray) -> list[int]:
    """In whatever order they lie, images are the same if their keys' hashes are."""
    return index.key_hash[ids].tolist()


def test_a_smaller_number_of_shots_begins_each_larger_one():
    index = columns([40, 60, 100])
    largest = choose_shots([index], NONE, 15, seed=3, num_classes=10)
    assert largest.shape == (10, 15)
    assert all(len(set(row)) == 15 for row in largest.tolist())
    assert (index.label[largest] == np.arange(10)[:, None]).all()
    for shots in (1, 5, 10):
        np.testing.assert_array_equal(choose_shots([index], NONE, shots, 3, 10), largest[:, :shots])
    assert set(choose_shots([index], NONE, 5, 4, 10).flat) != set(largest[:, :5].flat)  # of another seed


@pytest.mark.parametrize("shots", [1, 5, 12])
@pytest.mark.parametrize("seed", [0, 7])
def test_they_are_the_training_subset_of_that_size_and_seed(shots, seed):
    index = columns([70, 30, 150])
    rule = SubsetRule(val_fraction=0.2, samples_per_class=shots, seed=seed)
    chosen = choose_rows(index, rule)
    expected = [row for shard in range(3) for row in chosen.train.of_shard(shard).tolist()]
    assert sorted(choose_shots([index], chosen.val_rows, shots, seed, 10).flat) == expected
    assert sorted({*training_ids([index], chosen.val_rows).tolist(), *chosen.val_rows.tolist()}) == list(range(250))


def test_neither_the_order_of_images_nor_their_sources_matter(monkeypatch):
    index = columns([300])
    expected = keys(index, choose_shots([index], NONE, 8, 1, 10))
    order = np.random.default_rng(0).permutation(300)
    shuffled = dataclasses.replace(index, label=index.label[order], key_hash=index.key_hash[order])
    assert keys(shuffled, choose_shots([shuffled], NONE, 8, 1, 10)) == expected
    parts = [
        Columns(np.array([0, len(part)]), shuffled.label[part], shuffled.key_hash[part])
        for part in np.split(np.arange(300), [120, 130])
    ]
    assert keys(shuffled, choose_shots(parts, NONE, 8, 1, 10)) == expected  # numbered through
    monkeypatch.setattr(thresholds, "_CHUNK_ROWS", 7)
    assert keys(shuffled, choose_shots(parts, NONE, 8, 1, 10)) == expected


def test_held_out_images_are_never_chosen_in_any_source():
    parts = [columns([100], salt=1), columns([100], salt=2)]
    held_out = np.flatnonzero(np.arange(200) % 3 == 0)
    chosen = choose_shots(parts, held_out, 13, 0, 10)
    assert not set(chosen.flat) & set(held_out.tolist())
    assert (np.concatenate([part.label for part in parts])[chosen] == np.arange(10)[:, None]).all()


def test_a_class_with_too_few_images_is_named():
    index = columns([8], labels=[0, 0, 0, 1, 1, 2, 2, 2])
    assert choose_shots([index], NONE, 2, 0, 3).shape == (3, 2)
    with pytest.raises(InputError, match=r"^3 shots: class 1 \('dog'\) has 2 training images; ask for fewer shots$"):
        choose_shots([index], NONE, 3, 0, 3, ["cat", "dog", "owl"])
    with pytest.raises(InputError, match=r"^1 shots: class 3 has 0 training images, and 1 more have too few; ask"):
        choose_shots([index], NONE, 1, 0, 5)

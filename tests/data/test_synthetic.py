import hashlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from vitlight.data.index import load_index
from vitlight.data.synthetic import TEST_START, Difficulty, SyntheticImages, synth
from vitlight.errors import InputError


def digest(images: np.ndarray) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()[:16]


def test_images_are_the_same_bits_on_every_machine():
    images, labels = SyntheticImages().batch(np.arange(64))
    assert (images.shape, images.dtype) == ((64, 32, 32, 3), np.uint8)
    assert digest(images) == "65872f41fc2c9312"
    assert labels.tolist() == [i % 10 for i in range(64)]


def test_an_image_does_not_depend_on_its_batch():
    source = SyntheticImages(num_classes=7, image_size=24, seed=5)
    images, labels = source.batch(np.arange(200))
    order = np.random.default_rng(0).permutation(200)
    again, labels_again = source.batch(order)
    assert np.array_equal(again, images[order])
    assert np.array_equal(labels_again, labels[order])
    for i in (0, 63, 64, 199):
        image, label = source.image(i)
        assert np.array_equal(image, images[i])
        assert label == i % 7


def test_seeds_and_indices_differ():
    images, _ = SyntheticImages(seed=0).batch(np.arange(500))
    assert len({digest(image) for image in images}) == 500
    test, _ = SyntheticImages(seed=0).batch(TEST_START + np.arange(500))
    other, _ = SyntheticImages(seed=1).batch(np.arange(500))
    for those in (test, other):
        assert not {digest(image) for image in images} & {digest(image) for image in those}


def test_a_class_is_a_pair_of_texture_and_arrangement():
    """At difficulty 0 hues are those of the texture, and pixels vary in colour only where discs lie."""
    source = SyntheticImages(num_classes=9, difficulty=0)
    assert (source.num_texture_families, source.num_arrangement_families) == (3, 3)
    images, labels = source.batch(np.arange(1800))
    chroma = images - images.mean(axis=-1, keepdims=True)
    spread = np.stack([chroma[labels == c].std(axis=0).mean(axis=-1).ravel() for c in range(9)])
    ground = np.stack([chroma[labels == c][:, (row < np.quantile(row, 0.2)).reshape(32, 32)].mean(axis=(0, 1))
                       for c, row in enumerate(spread)])  # fmt: skip
    likeness = np.corrcoef(spread)
    for a in range(9):
        for b in range(a):
            assert (likeness[a, b] > 0.9) == (a % 3 == b % 3), (a, b, likeness[a, b])
            distance = np.abs(ground[a] - ground[b]).max()
            assert (distance < 4) == (a // 3 == b // 3), (a, b, distance)


def test_members_of_a_family_are_drawn_with_a_heavy_tail():
    source = SyntheticImages(difficulty=Difficulty(noise=0, num_distractors=0, jitter=0, hue=0, num_members=128))
    draws = (np.arange(100_000) + 0.5) / 100_000
    counts = np.bincount(source._member(np.zeros(100_000, np.int64), draws), minlength=128)
    expected = np.arange(1, 129) ** -1.25
    assert np.abs(counts / 100_000 - expected / expected.sum()).max() < 2e-5


@pytest.mark.parametrize("size", [8, 33, 224])
def test_any_size_shows_the_same_scene(size):
    easy = Difficulty(noise=0, num_distractors=2, jitter=0.2, hue=0.4, num_members=9)
    image, label = SyntheticImages(num_classes=5, image_size=size, difficulty=easy).image(3)
    assert (image.shape, label) == ((size, size, 3), 3)
    large, _ = SyntheticImages(num_classes=5, image_size=4 * size, difficulty=easy).image(3)
    shrunk = large.reshape(size, 4, size, 4, 3).astype(float).mean(axis=(1, 3))
    assert np.corrcoef(image.ravel(), shrunk.ravel())[0, 1] > 0.8


def test_difficulty_turns_every_knob():
    levels = [Difficulty.at(level) for level in (0, 0.25, 0.5, 0.75, 1)]
    assert levels[0] == Difficulty(noise=0, num_distractors=0, jitter=0.05, hue=0, num_members=1)
    assert levels[2] == Difficulty(noise=8, num_distractors=2, jitter=0.2, hue=0.4, num_members=128)
    for name in ("noise", "num_distractors", "jitter", "hue", "num_members"):
        values = [getattr(level, name) for level in levels]
        assert values == sorted(set(values)), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"difficulty": 1.5}, "difficulty=1.5: a number from 0 to 1"),
        ({"difficulty": float("nan")}, "difficulty=nan: a number from 0 to 1"),
        ({"num_classes": 1}, "num_classes=1: at least 2"),
        ({"image_size": 4}, "image_size=4: at least 8 pixels"),
        ({"num_train": 9}, "num_train=9: at least num_classes=10"),
        ({"num_test": 0}, "num_test=0: at least num_classes=10"),
    ],
)
def test_settings_out_of_range(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        synth(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_shards_hold_the_images(tmp_path):
    indexes = synth(tmp_path / "out", num_train=55, num_test=20, num_classes=5, samples_per_shard=25, seed=3)
    assert {split: (len(index), len(index.shards)) for split, index in indexes.items()} == {
        "train": (55, 3),
        "test": (20, 1),
    }
    source = SyntheticImages(num_classes=5, seed=3)
    for split, start in (("train", 0), ("test", TEST_START)):
        index = load_index(tmp_path / "out" / split)
        assert np.bincount(index.label).tolist() == [len(index) // 5] * 5
        data = [Path(shard).read_bytes() for shard in index.shards]
        for i in (0, 7, len(index) - 1):
            pixels, label = source.image(start + i)
            jpeg = data[index.shard_of(np.array([i]))[0]][int(index.offset[i]) :][: int(index.size[i])]
            assert (index.key(i), int(index.label[i])) == (f"{split}-{i:09d}", label)
            assert np.abs(simplejpeg.decode_jpeg(jpeg).astype(int) - pixels).mean() < 6


def test_more_images_come_after_the_same_ones(tmp_path):
    few = synth(tmp_path / "few", num_train=40, num_test=10, seed=1)
    many = synth(tmp_path / "many", num_train=90, num_test=10, seed=1)
    assert few["test"].digest == many["test"].digest
    assert np.array_equal(few["train"].key_hash, many["train"].key_hash[:40])
    assert np.array_equal(few["train"].size, many["train"].size[:40])
    with pytest.raises(InputError, match="not empty; choose another destination, or overwrite"):
        synth(tmp_path / "few", num_train=40, num_test=10)
    assert len(synth(tmp_path / "few", num_train=10, num_test=10, overwrite=True)["train"]) == 10

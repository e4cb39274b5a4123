import numpy as np
import pytest

from vitlight.data.augment import CropAndFlip, centre_box, random_resized_box
from vitlight.data.plan import hash_words

KEYS = hash_words(np.arange(4000, dtype=np.uint64))
EPOCHS = np.zeros(4000, np.int64)


def test_draws_depend_on_seed_epoch_and_key_alone():
    crops = CropAndFlip()
    draws = crops.draws(0, EPOCHS, KEYS)
    order = np.random.default_rng(0).permutation(4000)
    assert np.array_equal(crops.draws(0, EPOCHS, KEYS[order]), draws[order])
    assert not np.array_equal(crops.draws(1, EPOCHS, KEYS), draws)
    assert not np.array_equal(crops.draws(0, EPOCHS + 1, KEYS), draws)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (375, 500), (500, 333), (32, 320)])
def test_boxes_lie_inside_and_cover_what_they_say(height, width):
    crops = CropAndFlip(min_area=0.25)
    areas, ratios = [], []
    for draws in crops.draws(0, EPOCHS[:1000], KEYS[:1000]):
        top, left, box_height, box_width = crops.box(height, width, draws)
        assert top >= 0
        assert left >= 0
        assert 0 < box_height <= height - top
        assert 0 < box_width <= width - left
        areas.append(box_height * box_width / (height * width))
        ratios.append(box_width / box_height)
    if width < 3 * height:  # a strip leaves no room for an allowed ratio, and gets the largest centred crop
        assert min(areas) > 0.25 - 0.03
        assert 0.70 < min(ratios) < max(ratios) < 1.40
        assert abs(np.mean(np.log(ratios))) < 0.05


def test_positions_are_uniform():
    tops = [random_resized_box(100, 100, draws, 0.25, False)[0] for draws in CropAndFlip().draws(0, EPOCHS, KEYS)]
    assert min(tops) == 0
    assert max(tops) > 40


def test_the_whole_image_can_be_kept():
    crops = CropAndFlip(min_area=1.0, jitter_ratio=False, flip=False)
    for draws in crops.draws(0, EPOCHS[:50], KEYS[:50]):
        assert crops.box(28, 28, draws) == (0, 0, 28, 28)
        assert not crops.is_flipped(draws)


def test_half_of_the_images_are_flipped():
    crops = CropAndFlip()
    flipped = sum(crops.is_flipped(draws) for draws in crops.draws(0, EPOCHS, KEYS))
    assert 1850 < flipped < 2150  # 2000 +- 4.7 standard deviations


def test_the_centre_box_is_centred_and_square():
    assert centre_box(100, 200, 0.875) == (6, 56, 88, 88)
    assert centre_box(28, 28, 1.0) == (0, 0, 28, 28)
    assert centre_box(1, 9, 0.5) == (0, 4, 1, 1)

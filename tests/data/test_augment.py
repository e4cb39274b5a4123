import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.images import colourful
from tests.reference_libraries import reference
from vitlight.data.augment import Augmentation, centre_box, erase, random_resized_box
from vitlight.data.hashing import hash_words
from vitlight.errors import InputError

KEYS = hash_words(np.arange(4000, dtype=np.uint64))
EPOCHS = np.zeros(4000, np.int64)
SETTINGS = [
    {},
    {"policy": "randaugment_big_vision"},
    {"policy": "randaugment_timm", "magnitude": 7.0, "increasing": False},
    {"policy": "trivialaugment", "erase_probability": 0.25},
    {"policy": "three_augment"},
    {"color_jitter": 0.4, "hue_jitter": 0.1},
    {"erase_probability": 0.5, "erase_mode": "rand"},
]


def test_draws_depend_on_seed_epoch_and_key_alone():
    crops = Augmentation()
    draws = crops.draws(0, EPOCHS, KEYS)
    order = np.random.default_rng(0).permutation(4000)
    assert np.array_equal(crops.draws(0, EPOCHS, KEYS[order]), draws[order])
    assert not np.array_equal(crops.draws(1, EPOCHS, KEYS), draws)
    assert not np.array_equal(crops.draws(0, EPOCHS + 1, KEYS), draws)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (375, 500), (500, 333), (32, 320)])
def test_boxes_lie_inside_and_cover_what_they_say(height, width):
    crops = Augmentation(min_area=0.25)
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
    tops = [random_resized_box(100, 100, draws, 0.25, False)[0] for draws in Augmentation().draws(0, EPOCHS, KEYS)]
    assert min(tops) == 0
    assert max(tops) > 40


def test_the_whole_image_can_be_kept():
    crops = Augmentation(min_area=1.0, jitter_ratio=False, flip=False)
    for draws in crops.draws(0, EPOCHS[:50], KEYS[:50]):
        assert crops.box(28, 28, draws) == (0, 0, 28, 28)
        assert not crops.is_flipped(draws)


@pytest.mark.parametrize(("height", "width"), [(448, 448), (375, 500), (28, 90)])
def test_a_crop_of_a_squeezed_image_is_a_box_of_its_shape(height, width):
    """BiT's resize to 448 x 448 and random crop of 384, in pixels of the image itself."""
    crops = Augmentation(crop_side=384 / 448, min_area=1.0, jitter_ratio=False)
    boxes = np.array([crops.box(height, width, draws) for draws in crops.draws(0, EPOCHS, KEYS)])
    box_height, box_width = round(height * 384 / 448), round(width * 384 / 448)
    assert np.all(boxes[:, 2:] == (box_height, box_width))
    for places, last in ((boxes[:, 0], height - box_height), (boxes[:, 1], width - box_width)):
        assert (places.min(), places.max()) == (0, last)
        counts = np.bincount(places, minlength=last + 1)
        assert np.all(abs(counts - len(KEYS) / (last + 1)) < 5 * (len(KEYS) / (last + 1)) ** 0.5)


def test_half_of_the_images_are_flipped():
    crops = Augmentation()
    flipped = sum(crops.is_flipped(draws) for draws in crops.draws(0, EPOCHS, KEYS))
    assert 1850 < flipped < 2150  # 2000 +- 4.7 standard deviations


def test_the_centre_box_is_centred_and_square():
    assert centre_box(100, 200, 0.875) == (6, 56, 88, 88)
    assert centre_box(28, 28, 1.0) == (0, 0, 28, 28)
    assert centre_box(1, 9, 0.5) == (0, 4, 1, 1)


class Scripted:
    """Stands for the `random` module: gives the numbers of one list for shapes and of another for places."""

    def __init__(self, shapes, places):
        self.shapes, self.places = iter(shapes), iter(places)

    def random(self):
        return next(self.shapes)

    def uniform(self, low, high):
        return low + (high - low) * next(self.shapes)

    def randint(self, low, high):
        return low + int(next(self.places) * (high - low + 1))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (28, 28), (32, 320), (320, 32)])
def test_timm_crops_alike(height, width, monkeypatch):
    transforms = reference("timm.data.transforms")
    image = Image.new("L", (width, height))
    for draws in Augmentation().draws(0, EPOCHS[:300], KEYS[:300]):
        numbers = draws.tolist()
        monkeypatch.setattr(transforms, "random", Scripted(numbers[:20], numbers[20:22]))
        theirs = transforms.RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
        assert random_resized_box(height, width, draws, 0.08) == theirs


def test_without_repeats_and_policies_the_draws_are_those_of_version_0_1():
    draws = Augmentation().draws(3, np.array([0, 2]), KEYS[:2], np.zeros(2, np.int64))
    assert draws.shape == (2, 23)
    assert draws[:, [0, 1, 20, 21, 22]].tolist() == [
        [0.3037387136031068, 0.6688524805920524, 0.7037195608044405, 0.4646657769836944, 0.10194831635974011],
        [0.5227885195774961, 0.3707839795853386, 0.9183465088259632, 0.7171425372677983, 0.5407482497003829],
    ]


@pytest.mark.parametrize("augmentation", [Augmentation(**settings) for settings in SETTINGS], ids=str)
def test_settings_do_not_change_each_others_draws(augmentation):
    assert np.array_equal(augmentation.draws(0, EPOCHS, KEYS)[:, :23], Augmentation().draws(0, EPOCHS, KEYS))
    every = Augmentation(policy="randaugment_timm", num_ops=5).draws(0, EPOCHS, KEYS)
    draws = augmentation.draws(0, EPOCHS, KEYS)
    assert np.array_equal(every[:, : draws.shape[1]], draws)


def test_repeats_of_an_image_differ_and_the_first_is_the_image_itself():
    augmentation = Augmentation()
    repeats = np.arange(4000) % 3
    draws = augmentation.draws(0, EPOCHS, KEYS, repeats)
    first = augmentation.draws(0, EPOCHS, KEYS)
    assert np.array_equal(draws[repeats == 0], first[repeats == 0])
    assert not np.any(draws[repeats > 0, 0] == first[repeats > 0, 0])
    copies = augmentation.draws(0, EPOCHS[:4], np.repeat(KEYS[:1], 4), np.arange(4))
    assert len(np.unique(copies[:, 0])) == 4
    assert abs(draws.mean() - 0.5) < 4.5 / (12 * draws.size) ** 0.5


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_same_image_gets_the_same_pixels_in_any_batch(settings, channels):
    augmentation = Augmentation(**settings)
    pixels = np.ascontiguousarray(colourful(32, 32)[:, :, :channels])
    before = pixels.copy()
    order = np.random.default_rng(1).permutation(40)
    epochs, repeats = np.arange(40) % 4, np.arange(40) % 2
    draws = augmentation.draws(5, epochs, KEYS[:40], repeats)
    shuffled = augmentation.draws(5, epochs[order], KEYS[:40][order], repeats[order])
    results = [augmentation.distort(pixels, row) for row in draws]
    for place, row in zip(order, shuffled, strict=True):
        assert np.array_equal(augmentation.distort(pixels[:, ::-1][:, ::-1], row.tolist()), results[place])
    for result in results:
        assert (result.shape, result.dtype) == (pixels.shape, np.uint8)
        assert result.flags.writeable
        assert not np.shares_memory(result, pixels)
    assert np.array_equal(pixels, before)
    changed = sum(not np.array_equal(result, pixels) for result in results)
    assert changed > 8 if augmentation.changes_pixels else changed == 0
    assert len({result.tobytes() for result in results}) > 4 or not augmentation.changes_pixels


def test_an_image_may_lie_in_memory_in_any_order():
    augmentation = Augmentation(policy="randaugment_timm", color_jitter=0.4, erase_probability=0.5)
    pixels = colourful(32, 32)
    flipped = np.ascontiguousarray(pixels[:, ::-1])
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)
    for row in augmentation.draws(0, EPOCHS[:20], KEYS[:20]):
        assert np.array_equal(augmentation.distort(pixels[:, ::-1], row), augmentation.distort(flipped, row))
        assert np.array_equal(augmentation.distort(planes, row), augmentation.distort(pixels, row))


def test_distortions_follow_one_another():
    """Policy, then jitter, then erasing, each with its own draws."""
    whole = Augmentation(policy="trivialaugment", color_jitter=0.4, erase_probability=1.0)
    parts = [Augmentation(policy="trivialaugment"), Augmentation(color_jitter=0.4), Augmentation(erase_probability=1.0)]
    for row in whole.draws(0, EPOCHS[:20], KEYS[:20]):
        pixels = colourful(32, 32)
        expected = pixels
        for part in parts:
            expected = part.distort(expected, row)
        assert np.array_equal(whole.distort(pixels, row), expected)


def test_defaults_come_from_the_policys_source():
    pixels = colourful(32, 32)
    given = {
        "randaugment_big_vision": {"num_ops": 2, "magnitude": 10.0},
        "randaugment_timm": {"num_ops": 2, "magnitude": 9.0, "magnitude_std": 0.5, "increasing": True},
        "three_augment": {"color_jitter": 0.3},
    }
    for policy, settings in given.items():
        short, full = Augmentation(policy=policy), Augmentation(policy=policy, **settings)
        for row in short.draws(0, EPOCHS[:10], KEYS[:10]):
            assert np.array_equal(short.distort(pixels, row), full.distort(pixels, row))
    assert not Augmentation().changes_pixels
    assert Augmentation(policy="trivialaugment").changes_pixels
    assert Augmentation(hue_jitter=0.1).changes_pixels
    assert Augmentation(erase_probability=0.1).changes_pixels


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 60)])
def test_timm_erases_the_same_boxes(height, width, monkeypatch):
    random_erasing = reference("timm.data.random_erasing")
    for row in Augmentation(erase_probability=0.5).draws(0, EPOCHS[:200], KEYS[:200]):
        numbers = row.tolist()[31:55]
        ours = np.full((height, width, 3), 255, np.uint8)
        erase(ours, numbers, 0.5, "const")
        monkeypatch.setattr(random_erasing, "random", Scripted(numbers[:21], numbers[21:23]))
        theirs = torch.ones(3, height, width)
        random_erasing.RandomErasing(probability=0.5, mode="const", device="cpu")(theirs)
        assert np.array_equal(ours[:, :, 0] == 128, theirs[0].numpy() == 0)
        assert np.all((ours == 255) | (ours == 128))


def test_erased_boxes_hold_what_the_mode_says():
    pixels = np.zeros((64, 64, 3), np.uint8)
    rows = Augmentation(erase_probability=1.0).draws(0, EPOCHS[:200], KEYS[:200])
    noise = Augmentation(erase_probability=1.0, erase_mode="pixel")
    colour = Augmentation(erase_probability=1.0, erase_mode="rand")
    grey = Augmentation(erase_probability=1.0, erase_mode="const")
    values, colours, areas = [], [], []
    for row in rows:
        box = grey.distort(pixels, row)[:, :, 0] == 128
        areas.append(box.mean())
        noisy, plain = noise.distort(pixels, row), colour.distort(pixels, row)
        assert not noisy[~box].any()
        assert not plain[~box].any()
        values.append(noisy[box])
        assert len(np.unique(plain[box], axis=0)) == 1
        colours.append(plain[box][0])
    assert 0.015 < min(areas) < 0.05
    assert 0.3 < max(areas) < 0.34
    assert abs(np.mean(areas) - (0.02 + 1 / 3) / 2) < 4.5 * 0.0905 / 200**0.5
    counts = np.bincount(np.concatenate(values).ravel(), minlength=256)
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 4.5 * 510**0.5
    assert abs(np.mean(colours) - 127.5) < 4.5 * 73.9 / 600**0.5
    assert len(np.unique(colours, axis=0)) == 200


def test_images_are_erased_with_the_given_probability():
    augmentation = Augmentation(erase_probability=0.25)
    pixels = np.zeros((16, 16, 1), np.uint8)
    erased = sum(augmentation.distort(pixels, row).any() for row in augmentation.draws(0, EPOCHS, KEYS))
    assert abs(erased - 1000) < 4.5 * (4000 * 0.25 * 0.75) ** 0.5
    thin = np.zeros((1, 40, 3), np.uint8)  # no box is smaller than this in both directions
    for row in augmentation.draws(0, EPOCHS[:100], KEYS[:100]):
        assert not augmentation.distort(thin, row).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_side": 1.5}, r"data.augmentation.crop_side=1.5 is not in \(0, 1\]"),
        ({"crop_side": 0.8}, "set min_area to 1.0 and jitter_ratio to false, not 0.08 and true"),
        ({"policy": "trivial"}, "policy=trivial is not one of none, .*; did you mean trivialaugment"),
        ({"min_area": 0.0}, r"min_area=0.0 is not in \(0, 1\]"),
        (
            {"magnitude": 9.0},
            "magnitude=9.0 is not read by data.augmentation.policy=none; set it to null, or the policy to",
        ),
        ({"policy": "randaugment_big_vision", "magnitude_std": 0.5}, "magnitude_std=0.5 is not read by .*big_vision"),
        (
            {"policy": "randaugment_big_vision", "increasing": True},
            "increasing=True is not read .* to randaugment_timm",
        ),
        (
            {"policy": "trivialaugment", "num_ops": 1},
            "num_ops=1 is not read by data.augmentation.policy=trivialaugment",
        ),
        ({"policy": "randaugment_timm", "num_ops": 0}, "num_ops=0 is not at least 1; for none set policy to none"),
        ({"policy": "randaugment_timm", "magnitude": 15.0}, r"magnitude=15.0 is not in \[0, 10\]"),
        ({"policy": "randaugment_big_vision", "magnitude": 31.0}, r"magnitude=31.0 is not in \[0, 30\]"),
        ({"policy": "randaugment_timm", "magnitude_std": -1.0}, "magnitude_std=-1.0 is not a number from 0 on"),
        ({"color_jitter": -0.1}, "color_jitter=-0.1 is not a number from 0 on"),
        ({"hue_jitter": 0.6}, r"hue_jitter=0.6 is not in \[0, 0.5\]"),
        ({"erase_probability": 1.5}, r"erase_probability=1.5 is not in \[0, 1\]"),
        ({"erase_probability": 0.5, "erase_mode": "noise"}, "erase_mode=noise is not one of pixel, rand, const"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        Augmentation(**settings)
    assert "\n" not in str(caught.value)


def test_a_mode_of_erasing_without_erasing_warns():
    with pytest.warns(UserWarning, match="erase_mode=const is not read: erase_probability is 0"):
        Augmentation(erase_mode="const")

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.data.images import colourful, grey_image, rgb_image
from tests.reference_libraries import reference
from vitlight.data import policies
from vitlight.data.hashing import uniforms
from vitlight.data.ops import GEOMETRIC_OPS, Resampling, Step, apply_step
from vitlight.data.policies import (
    BIG_VISION,
    TIMM,
    TRIVIAL_OPS,
    BigVisionRandAugment,
    ColorJitter,
    ThreeAugment,
    TimmRandAugment,
    TrivialAugment,
)

ALL = [BigVisionRandAugment(), TimmRandAugment(), TrivialAugment(), ThreeAugment(), ColorJitter(0.4, 0.1)]
KEEP, NEGATE = 0.25, 0.75

# Arguments at levels 0, 5, 10 and 15, worked out by hand from level_to_arg, the cutout and translate constants of
# distort_image_with_randaugment (40 and 100), and the replies to issue 110, in google-research/big_vision,
# big_vision/pp/archive/autoaugment.py at 3925d42. Posterize at level 0 would keep no bit, but TensorFlow's shifts keep one.
BIG_VISION_FACTS = {
    "autocontrast": (0, 0, 0, 0),
    "equalize": (0, 0, 0, 0),
    "invert": (0, 0, 0, 0),
    "rotate": (0, 15, 30, 45),
    "posterize": (1, 2, 4, 6),
    "solarize": (0, 128, 0, 128),
    "color": (0.1, 1.0, 1.9, 2.8),
    "contrast": (0.1, 1.0, 1.9, 2.8),
    "brightness": (0.1, 1.0, 1.9, 2.8),
    "sharpness": (0.1, 1.0, 1.9, 2.8),
    "shear_x": (0, 0.15, 0.3, 0.45),
    "shear_y": (0, 0.15, 0.3, 0.45),
    "translate_x": (0, 50, 100, 150),
    "translate_y": (0, 50, 100, 150),
    "cutout": (0, 20, 40, 60),
    "solarize_add": (0, 55, 110, 165),
}
TIMM_NAMES = {
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
    "Invert": "invert",
    "Rotate": "rotate",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "SolarizeAdd": "solarize_add",
    "Color": "color",
    "Contrast": "contrast",
    "Brightness": "brightness",
    "Sharpness": "sharpness",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateXRel": "translate_x_part",
    "TranslateYRel": "translate_y_part",
}
TORCHVISION_NAMES = {
    "Identity": "identity",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Rotate": "rotate",
    "Brightness": "brightness",
    "Color": "color",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
}


def recorded(monkeypatch, policy, num_images, seed=0):
    """The steps that a policy takes on each of many images, with none of them carried out."""
    steps: list[list[Step]] = []

    def take(image, step):
        steps[-1].append(step)
        return image

    def cut(image, top, left, height, width):
        steps[-1].append(Step("cutout", height / 2))
        return image

    monkeypatch.setattr(policies, "apply_step", take)
    monkeypatch.setattr(policies, "cutout", cut)
    image = rgb_image()
    for row in uniforms(policy.num_draws, seed, np.arange(num_images, dtype=np.uint64)):
        steps.append([])
        policy(image, row.tolist())
    return steps


def assert_evenly_drawn(names, options):
    """Counts of n equally likely options: chi-square below its mean plus 4.5 standard deviations."""
    counts = Counter(names)
    assert set(counts) == set(options)
    expected = len(names) / len(options)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < (len(options) - 1) + 4.5 * (2 * (len(options) - 1)) ** 0.5


def test_big_vision_arguments():
    assert list(BIG_VISION) == list(BIG_VISION_FACTS)
    for op, facts in BIG_VISION_FACTS.items():
        assert [BIG_VISION[op](level) for level in (0.0, 5.0, 10.0, 15.0)] == pytest.approx(facts)


@pytest.mark.parametrize(("op", "argument"), [(op, facts[2]) for op, facts in BIG_VISION_FACTS.items()])
def test_big_vision_does_what_it_says(op, argument):
    place = (list(BIG_VISION).index(op) + 0.5) / 16
    for sign in (KEEP, NEGATE):
        done = BigVisionRandAugment(num_ops=1, magnitude=10.0)(rgb_image(), [place, sign, 0.2, 0.9])
        if op == "cutout":
            expected = colourful(40, 56)  # a box of 80 x 80 around (8, 50): rows to 48, columns from 10 on
            expected[:, 10:] = 128
        else:
            signed = -argument if sign == NEGATE and op in GEOMETRIC_OPS else argument
            expected = np.asarray(apply_step(rgb_image(), Step(op, signed)))
        assert np.array_equal(np.asarray(done), expected)


def test_big_vision_draws_evenly_with_one_magnitude(monkeypatch):
    steps = [step for taken in recorded(monkeypatch, BigVisionRandAugment(3, 5.0), 2000) for step in taken]
    assert len(steps) == 6000
    assert_evenly_drawn([step.op for step in steps], BIG_VISION)
    turns = [step.argument for step in steps if step.op == "rotate"]
    assert_evenly_drawn(turns, [-15.0, 15.0])
    assert {step.fill for step in steps} == {128}
    assert {step.resample for step in steps} == {Resampling.NEAREST}


@pytest.mark.parametrize("increasing", [False, True])
def test_timm_has_the_same_operations_and_arguments(increasing, monkeypatch):
    auto_augment = reference("timm.data.auto_augment")
    theirs = auto_augment._RAND_INCREASING_TRANSFORMS if increasing else auto_augment._RAND_TRANSFORMS
    assert [TIMM_NAMES[name.removesuffix("Increasing")] for name in theirs] == list(TIMM)
    policy = TimmRandAugment(increasing=increasing)
    for name, op in zip(theirs, TIMM, strict=True):
        level_to_argument = auto_augment.LEVEL_TO_ARG[name]
        for sign in (KEEP, NEGATE):
            monkeypatch.setattr(auto_augment.random, "random", lambda drawn=sign: drawn)
            for level in np.linspace(0.0, 10.0, 41):
                ours = policy.step(op, float(level), sign, Resampling.BICUBIC).argument
                expected = level_to_argument(float(level), {})[0] if level_to_argument else 0.0
                assert ours == pytest.approx(expected, abs=1e-12), (op, level)


@pytest.mark.parametrize("name", sorted(TIMM_NAMES))
def test_timm_makes_the_same_image(name, monkeypatch):
    auto_augment = reference("timm.data.auto_augment")
    op = TIMM_NAMES[name]
    theirs_name = next(n for n in auto_augment._RAND_INCREASING_TRANSFORMS if n in (name, name + "Increasing"))
    for place, resample in ((0.2, Resampling.BILINEAR), (0.8, Resampling.BICUBIC)):
        hparams = {"img_mean": (128, 128, 128), "interpolation": resample}
        monkeypatch.setattr(auto_augment.random, "random", lambda: NEGATE)
        theirs = auto_augment.AugmentOp(theirs_name, prob=1.0, magnitude=7, hparams=hparams)(rgb_image())
        choice = (list(TIMM).index(op) + 0.5) / len(TIMM)
        ours = TimmRandAugment(1, 7.0, 0.0)(rgb_image(), [choice, 0.0, 0.5, NEGATE, place])
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_timm_defaults_are_the_recipe():
    auto_augment = reference("timm.data.auto_augment")
    theirs = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": (128, 128, 128)})
    ours = TimmRandAugment()
    assert theirs.num_layers == ours.num_ops
    assert [TIMM_NAMES[op.name.removesuffix("Increasing")] for op in theirs.ops] == list(TIMM)
    assert {(op.magnitude, op.magnitude_std, op.prob) for op in theirs.ops} == {
        (ours.magnitude, ours.magnitude_std, 0.5)
    }
    assert {op.magnitude_max for op in theirs.ops} == {None}
    resamples = theirs.ops[0].kwargs["resample"]
    assert resamples == (Resampling.BILINEAR, Resampling.BICUBIC)


def test_timm_draws_half_of_the_operations_at_normal_magnitudes(monkeypatch):
    steps = recorded(monkeypatch, TimmRandAugment(2, 5.0, 1.0), 6000)
    taken = [step for row in steps for step in row]
    assert abs(len(taken) - 6000) < 4.5 * 3000**0.5
    assert_evenly_drawn([step.op for step in taken], TIMM)
    assert_evenly_drawn([step.resample for step in taken], [Resampling.BILINEAR, Resampling.BICUBIC])
    turns = np.array([step.argument for step in taken if step.op == "rotate"]) / 3.0
    assert abs(np.mean(turns > 0) - 0.5) < 4.5 * 0.5 / len(turns) ** 0.5
    levels = np.abs(turns)
    assert abs(levels.mean() - 5.0) < 4.5 / len(levels) ** 0.5
    assert abs(levels.std() - 1.0) < 4.5 / (2 * len(levels)) ** 0.5
    steps = recorded(monkeypatch, TimmRandAugment(2, 10.0, 1.0), 6000)
    turns = np.array([abs(step.argument) for row in steps for step in row if step.op == "rotate"])
    assert turns.max() == 30.0
    assert abs(np.mean(turns == 30.0) - 0.5) < 4.5 * 0.5 / len(turns) ** 0.5  # what lies above 10 is clipped


def test_trivialaugment_has_torchvisions_table():
    autoaugment = reference("torchvision.transforms.autoaugment")
    space = autoaugment.TrivialAugmentWide()._augmentation_space(31)
    assert [TORCHVISION_NAMES[name] for name in space] == list(TRIVIAL_OPS)
    for name, (magnitudes, is_signed) in space.items():
        op = TORCHVISION_NAMES[name]
        for strength in range(31):
            theirs = float(magnitudes[strength]) if magnitudes.ndim else 0.0
            kept, negated = (TrivialAugment.step(op, strength, sign).argument for sign in (KEEP, NEGATE))
            if op in ("brightness", "color", "contrast", "sharpness"):
                kept, negated = kept - 1.0, negated - 1.0
            if op.startswith("translate"):
                theirs = int(theirs + 1e-4)  # at strength 15 float32 has 15.999999, of which torchvision makes 15
            assert kept == pytest.approx(theirs, abs=2e-5)  # torchvision's are float32
            assert negated == pytest.approx(-theirs if is_signed else theirs, abs=2e-5)


@pytest.mark.parametrize("strength", [0, 7, 16, 30])
@pytest.mark.parametrize("name", list(TORCHVISION_NAMES))
def test_trivialaugment_makes_torchvisions_image(name, strength):
    autoaugment = reference("torchvision.transforms.autoaugment")
    magnitudes, is_signed = autoaugment.TrivialAugmentWide()._augmentation_space(31)[name]
    magnitude = float(magnitudes[strength]) if magnitudes.ndim else 0.0
    if is_signed and not name.startswith("Translate"):
        magnitude = -magnitude  # translations count the other way, with either sign as likely
    nearest = autoaugment.InterpolationMode.NEAREST
    theirs = autoaugment._apply_op(rgb_image(), name, magnitude, interpolation=nearest, fill=None)
    choice = (TRIVIAL_OPS.index(TORCHVISION_NAMES[name]) + 0.5) / 14
    ours = TrivialAugment()(rgb_image(), [choice, (strength + 0.5) / 31, NEGATE])
    difference = np.abs(np.asarray(ours, int) - np.asarray(theirs, int))
    if TORCHVISION_NAMES[name] in GEOMETRIC_OPS:
        assert np.mean(difference > 0) < 0.002  # float32 magnitudes may read a neighbour where two pixels are as near
    else:
        assert difference.max() <= 1


def test_trivialaugment_at_strength_0_keeps_the_image():
    bright = int(colourful().max())
    assert bright < 255
    for op in set(TRIVIAL_OPS) - {"autocontrast", "equalize"}:
        kept = apply_step(rgb_image(), TrivialAugment.step(op, 0, NEGATE))
        assert np.array_equal(np.asarray(kept), colourful()), op


def test_trivialaugment_draws_evenly(monkeypatch):
    steps = recorded(monkeypatch, TrivialAugment(), 6000)
    assert {len(row) for row in steps} == {1}
    assert_evenly_drawn([row[0].op for row in steps], TRIVIAL_OPS)
    bits = [row[0].argument for row in recorded(monkeypatch, TrivialAugment(), 20_000) if row[0].op == "posterize"]
    counts = Counter(bits)  # of the 31 strengths, 3 round to 8 bits, 3 to 2 bits, and 5 to each between
    assert set(counts) == set(range(2, 9))
    assert abs(counts[8] / len(bits) - 3 / 31) < 0.04
    assert abs(counts[5] / len(bits) - 5 / 31) < 0.04


def test_three_augment_draws_one_of_three(monkeypatch):
    steps = recorded(monkeypatch, ThreeAugment(), 6000)
    assert {len(row) for row in steps} == {1}
    assert_evenly_drawn([row[0].op for row in steps], ["grayscale", "solarize", "blur"])
    deviations = [row[0].argument for row in steps if row[0].op == "blur"]
    assert 0.1 <= min(deviations) < 0.11
    assert 1.99 < max(deviations) <= 2.0
    assert abs(np.mean(deviations) - 1.05) < 4.5 * 1.9 / (12 * len(deviations)) ** 0.5
    assert {row[0].argument for row in steps if row[0].op == "solarize"} == {128}


def test_color_jitter_follows_torchvision(monkeypatch):
    transforms = reference("torchvision.transforms.transforms")
    torchvisions = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
    assert torchvisions.brightness == (0.6, 1.4)
    draws = [0.1, 0.8, 0.6, 0.9, 0.7, 0.2, 0.9, 0.4]  # factors, then the order: contrast, hue, brightness, colour
    chosen = ([1, 3, 0, 2], 0.6 + 0.8 * 0.1, 0.6 + 0.8 * 0.8, 0.6 + 0.8 * 0.6, 0.08)
    monkeypatch.setattr(transforms.ColorJitter, "get_params", staticmethod(lambda *_: chosen))
    ours = ColorJitter(0.4, 0.1)(rgb_image(), draws)
    assert np.array_equal(np.asarray(ours), np.asarray(torchvisions(rgb_image())))


def test_color_jitter_draws_factors_and_orders_evenly(monkeypatch):
    steps = recorded(monkeypatch, ColorJitter(1.5, 0.2), 4800)
    assert_evenly_drawn([tuple(step.op for step in row) for row in steps], {tuple(s.op for s in row) for row in steps})
    assert len({tuple(step.op for step in row) for row in steps}) == 24
    factors = np.array([step.argument for row in steps for step in row if step.op == "color"])
    assert 0.0 <= factors.min() < 0.01
    assert 2.49 < factors.max() <= 2.5
    turns = np.array([step.argument for row in steps for step in row if step.op == "hue"])
    assert -0.2 <= turns.min() < -0.199
    assert 0.199 < turns.max() <= 0.2
    assert {step.op for row in recorded(monkeypatch, ColorJitter(0.0, 0.2), 9) for step in row} == {"hue"}
    assert {len(row) for row in recorded(monkeypatch, ColorJitter(0.4), 9)} == {3}


@pytest.mark.parametrize("policy", ALL, ids=lambda policy: type(policy).__name__)
def test_every_draw_is_a_valid_image(policy):
    for image in (rgb_image(), grey_image()):
        for draws in (*uniforms(policy.num_draws, 1, np.arange(60, dtype=np.uint64)), np.zeros(policy.num_draws)):
            done = policy(image, draws.tolist())
            assert (done.mode, done.size) == (image.mode, image.size)
            assert np.array_equal(np.asarray(done), np.asarray(policy(image, draws.tolist())))
        last = [1.0 - 2.0**-53] * policy.num_draws
        assert policy(image, last).size == image.size
    assert np.array_equal(np.asarray(Image.fromarray(colourful())), np.asarray(rgb_image()))

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from tests.data.images import colourful, grey_image, rgb_image
from tests.reference_libraries import reference
from vitlight.data.ops import COLOR_OPS, GEOMETRIC_OPS, Resampling, Step, apply_step, cutout

FACTORS = [0.0, 0.1, 0.73, 1.0, 1.4, 1.9, 2.8]
ARGUMENTS = {
    "color": FACTORS,
    "contrast": FACTORS,
    "brightness": FACTORS,
    "sharpness": FACTORS,
    "rotate": [-90.0, -27.0, 0.0, 13.5, 135.0],
    "shear_x": [-0.99, -0.27, 0.0, 0.3],
    "shear_y": [-0.99, -0.27, 0.0, 0.3],
    "translate_x": [-32, -7, 0, 11],
    "translate_y": [-32, -7, 0, 11],
    "translate_x_part": [-0.45, -0.1, 0.0, 0.31],
    "translate_y_part": [-0.45, -0.1, 0.0, 0.31],
    "posterize": [1, 2, 4, 7, 8],
    "solarize": [0, 1, 100, 128, 246.5, 255, 256],
    "solarize_add": [0, 55, 110],
    "hue": [-0.5, -0.1, 0.0, 0.05, 0.37, 0.5],
    "blur": [0.1, 1.0, 2.0],
}
CASES = [(op, argument) for op in sorted([*COLOR_OPS, *GEOMETRIC_OPS]) for argument in ARGUMENTS.get(op, [0.0])]
# Ours to torchvision's name, and what it is given for our argument.
TORCHVISION = {
    "identity": ("Identity", lambda _: 0.0),
    "shear_x": ("ShearX", float),
    "shear_y": ("ShearY", float),
    "translate_x": ("TranslateX", lambda pixels: -pixels),
    "translate_y": ("TranslateY", lambda pixels: -pixels),
    "rotate": ("Rotate", float),
    "brightness": ("Brightness", lambda factor: factor - 1.0),
    "color": ("Color", lambda factor: factor - 1.0),
    "contrast": ("Contrast", lambda factor: factor - 1.0),
    "sharpness": ("Sharpness", lambda factor: factor - 1.0),
    "posterize": ("Posterize", float),
    "solarize": ("Solarize", float),
    "autocontrast": ("AutoContrast", lambda _: 0.0),
    "equalize": ("Equalize", lambda _: 0.0),
    "invert": ("Invert", lambda _: 0.0),
}
TIMM = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "solarize_add": "SolarizeAdd",
    "color": "Color",
    "contrast": "Contrast",
    "brightness": "Brightness",
    "sharpness": "Sharpness",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "translate_x_part": "TranslateXRel",
    "translate_y_part": "TranslateYRel",
    "blur": "GaussianBlur",
}


def largest_difference(image, other):
    assert image.mode == other.mode
    return int(np.abs(np.asarray(image, np.int16) - np.asarray(other, np.int16)).max())


@pytest.mark.parametrize("image", [rgb_image(), grey_image()], ids=["rgb", "grey"])
@pytest.mark.parametrize(("op", "argument"), [case for case in CASES if case[0] in TORCHVISION])
def test_torchvision_agrees(op, argument, image):
    autoaugment = reference("torchvision.transforms.autoaugment")
    name, convert = TORCHVISION[op]
    nearest = autoaugment.InterpolationMode.NEAREST
    theirs = autoaugment._apply_op(image, name, convert(argument), interpolation=nearest, fill=None)
    assert largest_difference(apply_step(image, Step(op, argument, fill=0)), theirs) == 0


@pytest.mark.parametrize("resample", [Resampling.BILINEAR, Resampling.BICUBIC], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize(("op", "argument"), [case for case in CASES if case[0] in TIMM])
def test_timm_agrees(op, argument, resample):
    auto_augment = reference("timm.data.auto_augment")
    level = () if op in ("autocontrast", "equalize", "invert") else (argument,)
    theirs = auto_augment.NAME_TO_OP[TIMM[op]](rgb_image(), *level, resample=resample, fillcolor=(128, 128, 128))
    assert largest_difference(apply_step(rgb_image(), Step(op, argument, resample)), theirs) == 0


@pytest.mark.parametrize("turn", ARGUMENTS["hue"])
def test_torchvision_turns_hues_alike(turn):
    functional = reference("torchvision.transforms.functional")
    assert largest_difference(apply_step(rgb_image(), Step("hue", turn)), functional.adjust_hue(rgb_image(), turn)) == 0


def test_torchvision_grays_alike():
    functional = reference("torchvision.transforms.functional")
    theirs = functional.to_grayscale(rgb_image(), num_output_channels=3)
    assert largest_difference(apply_step(rgb_image(), Step("grayscale")), theirs) == 0


@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.0])
def test_blur_is_gaussian(deviation):
    blurred = np.asarray(apply_step(rgb_image(), Step("blur", deviation)), float)
    expected = gaussian_filter(colourful().astype(float), (deviation, deviation, 0), mode="nearest")
    assert np.abs(blurred - expected).mean() < 1.0


@pytest.mark.parametrize(
    ("op", "argument"),
    [("posterize", 8), ("solarize", 256), ("solarize_add", 0), ("hue", 0.0), ("identity", 0.0)]
    + [(op, 1.0) for op in ("color", "contrast", "brightness", "sharpness")]
    + [(op, 0.0) for op in sorted(GEOMETRIC_OPS)],
)
def test_arguments_that_keep_the_image(op, argument):
    # A turn by nothing still goes to hues and back, which costs up to a few levels.
    allowed = largest_difference(rgb_image(), rgb_image().convert("HSV").convert("RGB")) if op == "hue" else 0
    for resample in (Resampling.NEAREST, Resampling.BILINEAR, Resampling.BICUBIC):
        assert largest_difference(apply_step(rgb_image(), Step(op, argument, resample)), rgb_image()) <= allowed


def test_tables_of_values():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    values = np.arange(256)
    for bits in range(9):
        expected = values - values % 2 ** (8 - bits)
        assert np.array_equal(np.asarray(apply_step(ramp, Step("posterize", bits)))[0], expected)
    for threshold in (0, 77, 255, 256):
        expected = np.where(values < threshold, values, 255 - values)
        assert np.array_equal(np.asarray(apply_step(ramp, Step("solarize", threshold)))[0], expected)
    for addition in (1, 110, 165):
        expected = np.where(values < 128, np.minimum(values + addition, 255), values)
        assert np.array_equal(np.asarray(apply_step(ramp, Step("solarize_add", addition)))[0], expected)


@pytest.mark.parametrize(("op", "argument"), [case for case in CASES if case[0] not in ("color", "hue", "grayscale")])
def test_grey_images_get_what_equal_channels_get(op, argument):
    alone = np.asarray(apply_step(grey_image(), Step(op, argument)))
    together = np.asarray(apply_step(grey_image().convert("RGB"), Step(op, argument)))
    assert np.array_equal(together, np.stack([alone] * 3, axis=2))


@pytest.mark.parametrize(("op", "argument"), [("color", 0.1), ("color", 2.8), ("hue", 0.3), ("grayscale", 0.0)])
def test_grey_images_have_no_colour_to_change(op, argument):
    assert largest_difference(apply_step(grey_image(), Step(op, argument)), grey_image()) == 0


def test_what_lies_outside_is_filled():
    moved = np.asarray(apply_step(rgb_image(), Step("translate_x", 10, fill=37)))
    assert np.array_equal(moved[:, :-10], colourful()[:, 10:])
    assert np.all(moved[:, -10:] == 37)
    moved = np.asarray(apply_step(rgb_image(), Step("translate_y", -10)))
    assert np.array_equal(moved[10:], colourful()[:-10])
    assert np.all(moved[:10] == 128)
    assert np.all(np.asarray(apply_step(rgb_image(), Step("translate_x", 100))) == 128)


def test_a_cut_out_box_is_clipped_at_the_borders():
    pixels = colourful()
    expected = pixels.copy()
    expected[:5, 50:] = 128
    assert np.array_equal(np.asarray(cutout(rgb_image(), -3, 50, 8, 20)), expected)
    assert np.array_equal(np.asarray(cutout(rgb_image(), 4, 4, 0, 0)), pixels)
    assert np.array_equal(np.asarray(rgb_image()), pixels)


def test_an_unknown_operation_is_an_error():
    with pytest.raises(KeyError, match="sharpen"):
        apply_step(rgb_image(), Step("sharpen", 1.0))

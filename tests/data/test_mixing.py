import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from tests.reference_libraries import reference
from vitlight.data.hashing import hash_words
from vitlight.data.mixing import Mixing
from vitlight.errors import InputError

KEYS = hash_words(np.arange(4000, dtype=np.uint64))
EPOCHS = np.arange(4000) // 1000
BOTH = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, per="sample")


def batch(size, height=12, width=20, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.normal(size=(size, 3, height, width)).astype(np.float32))
    targets = torch.from_numpy(rng.dirichlet(np.ones(classes), size).astype(np.float32))
    return images, targets


def rows(*draws):
    return torch.from_numpy(np.array(draws, np.float32))


def one_box(height, width, weight, centre_row, centre_column):
    """CutMix's box in the words of its paper: sides r_w = W sqrt(1 - lambda) around a centre, cut off at the borders."""
    box_height, box_width = int(height * (1 - weight) ** 0.5), int(width * (1 - weight) ** 0.5)
    top, left = int(centre_row * height) - box_height // 2, int(centre_column * width) - box_width // 2
    box = np.zeros((height, width), bool)
    box[max(top, 0) : max(top + box_height, 0), max(left, 0) : max(left + box_width, 0)] = True
    return box


def test_mixup_blends_neighbours():
    images, targets = batch(4)
    weights = (0.25, 1.0, 0.0, 0.7)
    mixed, mixed_targets = Mixing(mixup_alpha=0.2, per="sample").apply(
        images, targets, rows(*((weight, 0, 0.5, 0.5) for weight in weights))
    )
    for i, weight in enumerate(weights):
        torch.testing.assert_close(mixed[i], weight * images[i] + (1 - weight) * images[i ^ 1])
        torch.testing.assert_close(mixed_targets[i], weight * targets[i] + (1 - weight) * targets[i ^ 1])
    assert torch.equal(mixed[1], images[1])
    assert torch.equal(mixed[2], images[3])


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.65, 0.985, 1.0])
@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.0, 0.0), (0.99, 0.1), (1.0, 1.0)])
def test_cutmix_puts_in_a_box_and_weighs_by_the_area_kept(weight, centre):
    images, targets = batch(2)
    draws = rows((weight, 1, *centre), (1.0, 1, 0.5, 0.5))
    mixed, mixed_targets = Mixing(cutmix_alpha=1.0, per="sample").apply(images, targets, draws)
    inside = (min(centre[0], 0.999), min(centre[1], 0.999))  # a centre of 1 in float32 was below 1, on the last line
    box = torch.from_numpy(one_box(12, 20, weight, *inside))
    assert torch.equal(mixed[0], torch.where(box, images[1], images[0]))
    kept = 1.0 - box.float().mean()
    torch.testing.assert_close(mixed_targets[0], kept * targets[0] + (1 - kept) * targets[1])
    assert torch.equal(mixed[1], images[1])
    assert torch.equal(mixed_targets[1], targets[1])


@pytest.fixture
def timm_draws(monkeypatch):
    """Makes timm draw what is asked for: lambda, MixUp or CutMix, and the pixel at the box's centre, image by image."""

    def script(draws, height, width):
        per_image = len(draws) > 1
        weights, kinds, centres = draws[:, 0], draws[:, 1], draws[:, 2:]
        uniform = iter([1.0 - kinds, np.zeros(len(draws))] if per_image else [0.0, float(1.0 - kinds[0])])
        lines = iter(
            int(part * side)
            for weight, kind, centre in zip(weights, kinds, centres, strict=True)
            if kind and weight < 1.0
            for part, side in zip(centre, (height, width), strict=True)
        )
        monkeypatch.setattr(np.random, "rand", lambda *_: next(uniform))
        monkeypatch.setattr(np.random, "beta", lambda *_, **__: weights if per_image else float(weights[0]))
        monkeypatch.setattr(np.random, "randint", lambda *_, **__: next(lines))

    return script


# timm mixes image i with image B - 1 - i, we with i ^ 1: our order of timm's eight images.
TIMM_ORDER = [0, 7, 1, 6, 2, 5, 3, 4]
DRAWS = np.array(
    [
        [0.3, 0, 0, 0],
        [0.65, 1, 0.5, 0.5],
        [1.0, 1, 0.2, 0.2],
        [0.1, 1, 0.9, 0.05],
        [0.85, 0, 0, 0],
        [0.2, 1, 0.0, 0.99],
        [0.5, 0, 0, 0],
        [0.9, 1, 0.3, 0.6],
    ]
)


def test_timm_mixes_single_images_alike(timm_draws):
    mixup = reference("timm.data.mixup")
    images, _ = batch(8)
    labels = torch.arange(8) % 7
    timm_draws(DRAWS, 12, 20)
    mixer = mixup.Mixup(0.8, 1.0, mode="elem", label_smoothing=0.0, num_classes=7)
    theirs, their_targets = mixer(images.clone(), labels)
    targets = torch.nn.functional.one_hot(labels, 7).float()
    ours, our_targets = BOTH.apply(images[TIMM_ORDER], targets[TIMM_ORDER], rows(*DRAWS[TIMM_ORDER]))
    torch.testing.assert_close(ours, theirs[TIMM_ORDER])
    torch.testing.assert_close(our_targets, their_targets[TIMM_ORDER])


@pytest.mark.parametrize("draws", DRAWS.tolist())
def test_timm_mixes_whole_batches_alike(draws, timm_draws):
    mixup = reference("timm.data.mixup")
    images, _ = batch(8)
    labels = torch.arange(8) % 7
    timm_draws(np.array([draws]), 12, 20)
    mixer = mixup.Mixup(0.8, 1.0, mode="batch", label_smoothing=0.0, num_classes=7)
    theirs, their_targets = mixer(images.clone(), labels)
    targets = torch.nn.functional.one_hot(labels, 7).float()
    mixing = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0)
    ours, our_targets = mixing.apply(images[TIMM_ORDER], targets[TIMM_ORDER], rows(draws).expand(8, 4))
    torch.testing.assert_close(ours, theirs[TIMM_ORDER])
    torch.testing.assert_close(our_targets, their_targets[TIMM_ORDER])


def test_big_visions_mixup_of_a_pair_is_ours():
    """In a batch of two, rolling by one and swapping neighbours are the same; the larger weight names the mixture."""
    images, targets = batch(2)
    weight = max(0.3, 1 - 0.3)
    theirs = weight * images + (1 - weight) * images.roll(1, 0)
    ours, _ = Mixing(mixup_alpha=0.2).apply(images, targets, rows((0.3, 0, 0, 0)).expand(2, 4))
    torch.testing.assert_close(ours.flip(0), theirs)


@pytest.mark.parametrize("mixing", [BOTH, Mixing(mixup_alpha=0.8, cutmix_alpha=1.0)], ids=["sample", "batch"])
@pytest.mark.parametrize("parts", [2, 4, 16])
def test_micro_batches_are_mixed_as_the_whole_batch_is(mixing, parts):
    images, targets = batch(64)
    keys, epochs, repeats = KEYS[:64], EPOCHS[:64], np.arange(64) % 2
    whole = mixing.apply(images, targets, torch.from_numpy(mixing.draws(1, 9, epochs, keys, repeats)))
    size = 64 // parts
    slices = [slice(start, start + size) for start in range(0, 64, size)]
    drawn = [torch.from_numpy(mixing.draws(1, 9, epochs[part], keys[part], repeats[part])) for part in slices]
    micro = [mixing.apply(images[part], targets[part], draws) for part, draws in zip(slices, drawn, strict=True)]
    for place in (0, 1):
        assert torch.equal(torch.cat([result[place] for result in micro]), whole[place])


def test_draws_of_a_sample_depend_on_seed_epoch_key_and_repeat_alone():
    repeats = np.arange(4000) % 2
    draws = BOTH.draws(0, 5, EPOCHS, KEYS, repeats)
    assert (draws.shape, draws.dtype) == ((4000, 4), np.float32)
    order = np.random.default_rng(0).permutation(4000)
    assert np.array_equal(BOTH.draws(0, 77, EPOCHS[order], KEYS[order], repeats[order]), draws[order])
    for other in (
        BOTH.draws(1, 5, EPOCHS, KEYS, repeats),
        BOTH.draws(0, 5, EPOCHS + 1, KEYS, repeats),
        BOTH.draws(0, 5, EPOCHS, KEYS, repeats + 2),
    ):
        assert np.mean(other[:, 0] == draws[:, 0]) < 0.02
    assert np.array_equal(BOTH.draws(0, 5, EPOCHS, KEYS), BOTH.draws(0, 5, EPOCHS, KEYS, np.zeros(4000, np.int64)))


def test_a_batch_is_drawn_once_for_all_ranks():
    mixing = Mixing(mixup_alpha=0.2, cutmix_alpha=1.0)
    rank_0, rank_1 = mixing.draws(3, 11, EPOCHS[:32], KEYS[:32]), mixing.draws(3, 11, EPOCHS[32:48], KEYS[32:48])
    assert len(np.unique(np.concatenate([rank_0, rank_1]), axis=0)) == 1
    steps = [mixing.draws(3, step, EPOCHS[:2], KEYS[:2])[0, 0] for step in range(50)]
    assert len(set(steps)) == 50
    assert mixing.draws(4, 11, EPOCHS[:2], KEYS[:2])[0, 0] != rank_0[0, 0]


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_weights_follow_the_beta_distribution(alpha):
    for mixing in (Mixing(mixup_alpha=alpha, per="sample"), Mixing(cutmix_alpha=alpha, per="sample")):
        draws = mixing.draws(0, 0, EPOCHS, KEYS)
        # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed once in a thousand.
        assert stats.kstest(draws[:, 0].astype(float), stats.beta(alpha, alpha).cdf).statistic < 1.95 / 4000**0.5
        assert set(draws[:, 1]) == {float(mixing.cutmix_alpha > 0)}
        assert stats.kstest(draws[:, 2].astype(float), "uniform").statistic < 1.95 / 4000**0.5
        assert abs(np.corrcoef(draws[:, [0, 2, 3]].T) - np.eye(3)).max() < 4.5 / 4000**0.5


def test_shares_of_mixing_and_of_cutmix():
    assert abs(BOTH.draws(0, 0, EPOCHS, KEYS)[:, 1].mean() - 0.5) < 4.5 * 0.5 / 4000**0.5
    draws = Mixing(0.8, 1.0, cutmix_probability=0.2, probability=0.6, per="sample").draws(0, 0, EPOCHS, KEYS)
    is_mixed = draws[:, 0] < 1.0
    assert abs(is_mixed.mean() - 0.6) < 4.5 * (0.24 / 4000) ** 0.5
    assert abs(draws[is_mixed, 1].mean() - 0.2) < 4.5 * (0.16 / 2400) ** 0.5
    for kind, alpha in ((0, 0.8), (1, 1.0)):
        weights = draws[is_mixed & (draws[:, 1] == kind), 0].astype(float)
        assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).statistic < 1.95 / len(weights) ** 0.5


def test_a_threshold_makes_whole_targets_of_the_classes_above_it():
    images, targets = torch.zeros(4, 3, 8, 8), torch.eye(4)
    draws = rows((0.7, 0, 0.5, 0.5), (0.1, 0, 0.5, 0.5), (0.85, 0, 0.5, 0.5), (1.0, 0, 0.5, 0.5))
    both = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]
    large = [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    for threshold, expected in ((0.0, both), (0.2, large)):
        mixing = Mixing(mixup_alpha=0.2, per="sample", target_threshold=threshold)
        assert mixing.apply(images, targets, draws)[1].tolist() == expected


def test_targets_keep_their_sum_and_images_that_are_not_mixed_are_untouched():
    mixing = Mixing(0.8, 1.0, probability=0.5, per="sample")
    images, targets = batch(64)
    draws = torch.from_numpy(mixing.draws(0, 0, EPOCHS[:64], KEYS[:64]))
    before = images.clone(), targets.clone()
    mixed, mixed_targets = mixing.apply(images, targets, draws)
    torch.testing.assert_close(mixed_targets.sum(1), torch.ones(64))
    untouched = draws[:, 0] == 1.0
    assert 16 < int(untouched.sum()) < 48
    assert torch.equal(mixed[untouched], images[untouched])
    assert torch.equal(mixed_targets[untouched], targets[untouched])
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_memory_format_and_type_stay(channels):
    images = torch.rand(8, channels, 6, 10).to(memory_format=torch.channels_last)
    draws = torch.from_numpy(BOTH.draws(0, 0, EPOCHS[:8], KEYS[:8]))
    mixed, targets = BOTH.apply(images, torch.eye(8), draws)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    half, _ = BOTH.apply(images.bfloat16(), torch.eye(8), draws)
    assert half.dtype == torch.bfloat16
    assert targets.dtype == torch.float32
    torch.testing.assert_close(half.float(), mixed, atol=0.02, rtol=0)


def test_nothing_waits_for_the_device():
    """Tensors on the meta device have no values, so reading one on the host fails."""
    draws = torch.from_numpy(BOTH.draws(0, 0, EPOCHS[:8], KEYS[:8])).to("meta")
    images, targets = torch.empty(8, 3, 6, 10, device="meta"), torch.empty(8, 5, device="meta")
    mixed, mixed_targets = BOTH.apply(images, targets, draws)
    assert (mixed.shape, mixed_targets.shape) == (images.shape, targets.shape)


def test_an_odd_batch_is_an_error():
    images, targets = batch(3)
    with pytest.raises(InputError, match=r"a micro-batch has 3 images; make data.global_batch_size an even multiple"):
        BOTH.apply(images, targets, rows((1, 0, 0, 0)).expand(3, 4))


def test_enabled():
    assert not Mixing().enabled
    assert not Mixing(mixup_alpha=0.2, probability=0.0).enabled
    assert Mixing(mixup_alpha=0.2).enabled
    assert Mixing(cutmix_alpha=1.0).enabled


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup_alpha": -0.1}, "data.mixing.mixup_alpha=-0.1 is not a number from 0 on"),
        ({"cutmix_alpha": float("inf")}, "data.mixing.cutmix_alpha=inf is not a number from 0 on"),
        ({"mixup_alpha": 0.1, "probability": 1.1}, r"data.mixing.probability=1.1 is not in \[0, 1\]"),
        ({"mixup_alpha": 0.1, "per": "pair"}, "data.mixing.per=pair is not sample or batch"),
        ({"mixup_alpha": 0.1, "target_threshold": 0.5}, r"data.mixing.target_threshold=0.5 is not in \[0, 0.5\)"),
        ({"mixup_alpha": 0.1, "cutmix_probability": 0.5}, "cutmix_probability=0.5 chooses between MixUp and CutMix"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        Mixing(**settings)


def test_settings_of_a_mixing_that_is_off_warn():
    with pytest.warns(UserWarning, match="per=sample, probability=1.0 and target_threshold=None are not read"):
        Mixing(per="sample")


def test_scipy_is_imported_by_those_who_draw_alone():
    code = (
        "import sys, vitlight.data.mixing\n"
        "print(sorted({'scipy', 'lightning', 'pandas', 'torchvision', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

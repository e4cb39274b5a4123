"""Fixed position embeddings at another size than they were trained at: coordinates between the old ones, not beyond."""

import pytest
import torch

from vitlight.errors import InputError
from vitlight.models import build_model
from vitlight.models.position_grid import fixed_position_grid, keep_position_grid
from vitlight.models.vit import sincos2d


def test_the_middles_of_patches_lie_on_the_old_grid():
    table = sincos2d(14, 32, over=7)[0]
    x = (torch.arange(14, dtype=torch.float64) + 0.5) / 2 - 0.5  # -0.25, 0.25, 0.75, ... 6.25
    assert torch.allclose(table[:14, 0].double(), x.sin(), atol=1e-6)  # the frequency of the first feature is 1
    assert torch.allclose(table[::14, 16].double(), x.sin(), atol=1e-6)
    assert torch.equal(sincos2d(7, 32, over=7), sincos2d(7, 32))


def test_the_network_takes_them():
    at_28, at_56 = (build_model("vit_nano1", 10, size, posemb_grid=7).get_buffer("posemb") for size in (28, 56))
    assert torch.equal(at_28, build_model("vit_nano1", 10, 28).get_buffer("posemb"))
    assert torch.equal(at_56, sincos2d(14, 32, over=7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posemb": "learned", "posemb_grid": 7}, r"posemb_grid=7 is read with posemb='sincos2d' alone"),
        ({"posemb_grid": 0}, r"posemb_grid=0 must be a whole number of at least 1"),
    ],
)
def test_a_grid_without_a_meaning_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        build_model("vit_nano1", 10, 28, **options)


def trained(image_size, options=None, arch="vit_nano1"):
    """Of an experiment.yaml what says how positions were computed."""
    return {"model": {"arch": arch, "model_options": options}, "data": {"image_size": image_size}}


@pytest.mark.parametrize(
    ("arch", "options", "image_size", "grid"),
    [
        ("vit_nano1", None, 28, 7),
        ("vit_nano1", {"posemb_grid": 7}, 56, 7),
        ("vit_nano1", {"posemb": "learned"}, 28, None),
        ("vit_s16", {"posemb": "sincos2d", "pool": "gap"}, 224, 14),
        ("resnet_nano1", None, 28, None),
        ("coatnet_nano1", {}, 32, None),
    ],
)
def test_the_grid_of_fixed_positions(arch, options, image_size, grid):
    assert fixed_position_grid(arch, options, image_size) == grid


@pytest.mark.parametrize(
    ("options", "image_size", "run", "kept"),
    [
        (None, 56, trained(28), {"posemb_grid": 7}),
        ({"qk_norm": True}, 56, trained(28), {"qk_norm": True, "posemb_grid": 7}),
        (None, 28, trained(28), None),
        ({}, 28, trained(28), {}),
        (None, 112, trained(56, {"posemb_grid": 7}), {"posemb_grid": 7}),  # fine-tuned twice
        ({"posemb_grid": 14}, 56, trained(28), {"posemb_grid": 14}),  # said is said
        ({"posemb_grid": None}, 56, trained(28), {"posemb_grid": 7}),
        ({"posemb": "learned"}, 56, trained(28), {"posemb": "learned"}),
        (None, 56, trained(28, {"posemb": "learned"}), None),  # it has a table, and is refused when it is loaded
        (None, 56, trained(32, arch="resnet_nano1"), None),
    ],
)
def test_the_grid_of_the_trained_run_is_kept(options, image_size, run, kept):
    assert keep_position_grid("vit_nano1", options, image_size, run) == kept

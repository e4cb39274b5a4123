"""Fixed position embeddings at another size than they were trained at: coordinates between the old ones, not beyond."""

import pytest
import torch

from vitlight.errors import InputError
from vitlight.models import build_model
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

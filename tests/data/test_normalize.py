"""Pixels become float32 as (x / 255 - mean) / std, in whatever layout they come."""

import pytest
import torch

from vitlight.data.normalize import Normalization, normalized, per_channel
from vitlight.errors import InputError


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pixels_are_normalised_by_channel_in_their_layout(channels, layout):
    images = torch.randint(0, 256, (4, channels, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=layout)
    mean = torch.tensor([0.485, 0.456, 0.406][:channels]).view(1, channels, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225][:channels]).view(1, channels, 1, 1)
    found = normalized(images, mean, std)
    expected = (images.double() / 255 - mean.double()) / std.double()
    assert found.dtype == torch.float32
    assert found.stride() == images.stride()
    assert torch.allclose(found.double(), expected, atol=1e-6)
    assert torch.equal(found, normalized(images.contiguous(), mean, std))  # to the bit, in either layout


def test_one_normalisation_takes_images_of_any_size():
    norm = Normalization(torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
    for size in (8, 5, 8):
        white = torch.full((2, 3, size, size), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        assert torch.equal(norm(white), torch.ones(2, 3, size, size))


def test_constants_are_one_number_or_one_a_channel():
    assert per_channel("mean", 0.5, 3).flatten().tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(InputError, match=r"data\.mean has 2 values for data\.channels=3"):
        per_channel("mean", [0.5, 0.5], 3)
    with pytest.raises(InputError, match=r"data\.std=0\.0 is not positive"):
        per_channel("std", 0.0, 1)

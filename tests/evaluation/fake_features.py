"""Features of images that were never there."""

import torch

from vitlight.evaluation.features import FeatureSet

__all__ = ["fake_features"]


def fake_features(num: int, width: int, num_classes: int, seed: int, spread: float = 2.0) -> FeatureSet:
    """Float32 clouds, one a class in turn, so wide that no classifier is always right; every feature on a scale of its own.
    The clouds' places don't depend on the seed."""
    places = torch.Generator().manual_seed(99)
    centres, scales = torch.randn(num_classes, width, generator=places), torch.rand(width, generator=places) * 9 + 0.1
    noise = torch.randn(num, width, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(num) % num_classes
    return FeatureSet((centres[labels] + spread * noise) * scales + 5.0, labels)

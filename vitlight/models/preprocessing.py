"""How images are prepared for weights that don't say it themselves.

timm says it for each of its weights (`pretrained_cfg`), and evaluates at test_input_size with test_crop_pct where there are
such, else at input_size with crop_pct (its validate.py). For the rest, what the weights of a family are mostly used with, in
timm 1.0.31's configs of the same weights: ViT and BiT by Google and timm's CoAtNets took pixels in [-1, 1], ResNets the mean
and standard deviation of ImageNet's training images.
"""

from dataclasses import dataclass, replace
from statistics import fmean

from vitlight.models import TimmConfig, arch_family, build_config, default_image_size
from vitlight.models.bit import BiTConfig

__all__ = ["Preprocessing", "usual_preprocessing"]

_HALF = (0.5, 0.5, 0.5)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OURS = {"crop_mode": "center", "interpolation": "bicubic"}  # in timm's words


@dataclass(frozen=True)
class Preprocessing:
    """mean, std: per channel, of pixels in [0, 1]. crop_fraction: the shorter side is resized to image_size divided by it
    before the centre is cut out. whose: who says so, for people. image_size: where they say that. unlike: what they
    have otherwise than vitlight, a few words each."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float
    whose: str
    image_size: int | None = None
    unlike: tuple[str, ...] = ()

    def for_channels(self, num_channels: int) -> "Preprocessing":
        """With one number for each channel: of another number of channels than three, the mean over those."""
        if num_channels == len(self.mean):
            return self
        return replace(self, mean=(fmean(self.mean),) * num_channels, std=(fmean(self.std),) * num_channels)


def usual_preprocessing(arch: str, timm_name: str | None = None) -> Preprocessing:
    """For weights of `arch`; timm_name: the name in timm that they were fetched by, with its tag, where there is one.

    Raises InputError for an unknown arch.
    """
    config = build_config(arch, image_size=default_image_size(arch))
    name = timm_name if timm_name is not None else config.name if isinstance(config, TimmConfig) else None
    if name is not None and (known := _timm_preprocessing(name)) is not None:
        return known
    if isinstance(config, BiTConfig):
        return Preprocessing(_HALF, _HALF, 1.0, "usual for BiT")
    if arch_family(arch) == "resnet":
        return Preprocessing(_IMAGENET_MEAN, _IMAGENET_STD, 0.875, "usual for ResNets")
    if arch_family(arch) == "coatnet":
        return Preprocessing(_HALF, _HALF, 0.95, "usual for CoAtNets")
    return Preprocessing(_HALF, _HALF, 0.9, "usual for ViTs")


def _timm_preprocessing(name: str) -> Preprocessing | None:
    """What timm says of weights; None where timm is not installed or doesn't know them."""
    try:
        import timm
    except ModuleNotFoundError:
        return None
    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:
        return None
    if known is None:
        return None
    size = (known.test_input_size or known.input_size)[-1]
    theirs = ((setting, ours, getattr(known, setting)) for setting, ours in _OURS.items())
    return Preprocessing(
        mean=tuple(known.mean),
        std=tuple(known.std),
        crop_fraction=float(known.test_crop_pct or known.crop_pct),
        whose=f"timm's for {name} at {size} px",
        image_size=size,
        unlike=tuple(f"{setting} {ours} in place of timm's {its}" for setting, ours, its in theirs if its != ours),
    )

"""What several rows of the published settings share."""

from typing import Any

__all__ = ["EPOCH", "IN1K", "IN21K", "INCEPTION", "JFT", "Row", "sgd", "steps_at", "tf_randaugment", "timm_randaugment"]

Row = dict[str, Any]

IN1K: Row = {"classes": 1000}
IN21K: Row = {"classes": 21_843}
JFT: Row = {"classes": 18_291, "multi_label": True}
EPOCH = 1_281_167  # images

# TensorFlow's Inception crop from 5 % of the area, RandAugment (2, m) and MixUp as big_vision has them.
INCEPTION: Row = {"min_area": 0.05}


def tf_randaugment(magnitude: float, mixup: float = 0.0) -> Row:
    return {"policy": "randaugment_big_vision", "magnitude": magnitude, "mixup": mixup}


# timm's `rand-mM-mstd0.5-inc1`, bicubic.
def timm_randaugment(magnitude: float, **more: Any) -> Row:
    return {"policy": "randaugment_timm", "magnitude": magnitude, "interpolation": "bicubic", "cutmix": 1.0, **more}


def sgd(lr: float, decay: float, **more: Any) -> Row:
    return {"optimizer": "sgd", "lr": lr, "decay": decay, "betas": (None, None), "momentum": 0.9, **more}


def steps_at(*milestones: float) -> Row:
    return {"schedule": "steps", "milestones": list(milestones)}

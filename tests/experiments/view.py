"""A stack of settings as one flat table of what defines its training, in the units that papers print."""

from dataclasses import fields, replace
from functools import cache
from typing import Any

import torch

from tests.experiments.stacks import parse
from vitlight.data.augment import Augmentation
from vitlight.data.mixing import Mixing
from vitlight.training.optim import Optimizer
from vitlight.training.schedule import Schedule

__all__ = ["IMAGES", "PLAIN", "view"]

# Images of a training set by its number of classes: ImageNet-1k, ImageNet-21k, JFT-300M (as the ViT paper counts), JFT-3B.
IMAGES = {1000: 1_281_167, 21_843: 14_197_122, 18_291: 303_000_000, 29_593: 3_000_000_000}

# What holds for a recipe unless its row says otherwise.
PLAIN: dict[str, Any] = {
    **{"image_size": 224, "eval_crop": 0.875, "multi_label": False, "fresh_head": False, "options": {}},
    **{"repeats": 1, "optimizer": "adamw", "head_decay": None, "decays": "kernels"},
    **{"betas": (0.9, 0.999), "momentum": None, "momentum_dtype": "float32", "clip": None, "ema": None},
    **{"schedule": "cosine", "warmup": 0, "last_lr": 0.0, "milestones": None, "timescale": None, "cooldown": None},
    **{
        "loss": "softmax",
        "smoothing": 0.0,
        "head_bias": None,
        "min_area": 0.08,
        "jitter_ratio": True,
        "crop_side": None,
    },
    **{"interpolation": "bilinear", "policy": "none", "magnitude": None, "color_jitter": None, "erasing": 0.0},
    **{"mixup": 0.0, "cutmix": 0.0, "threshold": None, "others": {}},
}
# The fields of the groups that have an entry of their own above; `others` are the rest, where they aren't the default.
_NAMED = {
    **dict.fromkeys(("name", "lr", "weight_decay", "head_weight_decay", "decay", "beta1", "beta2"), Optimizer),
    **dict.fromkeys(("momentum", "momentum_dtype"), Optimizer),
    **dict.fromkeys(("warmup_samples", "warmup_fraction", "final_fraction", "milestones"), Schedule),
    **dict.fromkeys(("timescale_samples", "cooldown_samples"), Schedule),
    **dict.fromkeys(("min_area", "jitter_ratio", "crop_side", "interpolation", "policy", "magnitude"), Augmentation),
    **dict.fromkeys(("color_jitter", "erase_probability"), Augmentation),
    **dict.fromkeys(("mixup_alpha", "cutmix_alpha", "target_threshold"), Mixing),
}


@cache
def view(stack: str) -> dict[str, Any]:
    """PLAIN's entries, and arch, classes, batch, steps, lr and decay; warmup, timescale and cooldown are in images."""
    cli = parse(stack)
    model, data = cli.build_model_settings(), cli.build_data()
    optimizer, schedule, augmentation, mixing = model["optimizer"], model["schedule"], data.augmentation, data.mixing
    without_head = replace(optimizer, head_weight_decay=None)
    settings = without_head.build(torch.nn.Linear(2, 2)).defaults  # with what null stands for
    betas = settings.get("betas", (settings.get("beta1"), settings.get("beta2")))
    batch, images = data.global_batch_size, IMAGES.get(data.num_classes, 0)  # 0: its duration is in images
    steps = model["duration"].num_steps(images, batch, forward_macs=1)
    others = {
        field.name: getattr(group, field.name)
        for group in (optimizer, schedule, augmentation, mixing)
        for field in fields(group)
        if field.name not in _NAMED and getattr(group, field.name) != field.default
    }
    return {
        **{"arch": model["arch"], "classes": data.num_classes, "steps": steps, "options": model["model_options"] or {}},
        **{"image_size": data.image_size, "eval_crop": data.eval_crop, "multi_label": data.is_multi_label},
        **{"fresh_head": model["weights_head"] == "fresh", "batch": batch, "repeats": data.num_repeats},
        **{"optimizer": optimizer.name, "lr": optimizer.lr, "decay": optimizer.weight_decay, "decays": optimizer.decay},
        **{"head_decay": optimizer.head_weight_decay, "betas": betas},
        **{"momentum": optimizer.momentum, "momentum_dtype": optimizer.momentum_dtype},
        **{"clip": cli.settings.trainer.gradient_clip_val, "ema": model["ema_decay"]},
        **{"schedule": schedule.name, "warmup": schedule.warmup(steps * batch), "milestones": schedule.milestones},
        **{"last_lr": optimizer.lr * schedule.final_fraction, "timescale": schedule.timescale_samples},
        **{"cooldown": schedule.cooldown_samples, "loss": model["loss"], "smoothing": model["label_smoothing"]},
        **{"head_bias": model["head_bias_init"], "min_area": augmentation.min_area},
        **{"jitter_ratio": augmentation.jitter_ratio, "crop_side": augmentation.crop_side},
        **{"interpolation": augmentation.interpolation, "policy": augmentation.policy},
        **{"magnitude": augmentation.magnitude, "color_jitter": augmentation.color_jitter},
        **{"erasing": augmentation.erase_probability, "mixup": mixing.mixup_alpha, "cutmix": mixing.cutmix_alpha},
        **{"threshold": mixing.target_threshold, "others": {k: v for k, v in others.items() if k != "name"}},
    }

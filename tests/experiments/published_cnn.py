"""Published settings of CoAtNet and of convolutional networks; see published.py."""

from tests.experiments.rows import (
    EPOCH,
    IN1K,
    IN21K,
    INCEPTION,
    JFT,
    Row,
    sgd,
    steps_at,
    tf_randaugment,
    timm_randaugment,
)

__all__ = ["BIT", "CNN", "COATNET"]

# arXiv 2106.04803v2, Table 10
_PRETRAIN: Row = {"batch": 4096, "lr": 1e-3, "last_lr": 1e-5, "clip": 1.0}
_FINETUNE: Row = {
    **{**IN1K, "lr": 5e-5, "decay": 1e-8, "schedule": "constant", "smoothing": 0.1, "clip": 1.0, "ema": 0.9999},
    **{"image_size": 384, "eval_crop": 1.0},
}
_SIGMOID: Row = {"loss": "sigmoid", "smoothing": 1e-4, "schedule": "linear"}


def _sizes(recipe: str, rates: dict[int, float], **more: Row) -> dict[str, Row]:
    """The deltas of CoAtNet-N with its stochastic depth, and what else changes by `_N`."""
    return {
        f"{recipe} + {recipe}/{n}": {
            **{"arch": f"coatnet_{n}", "options": {"drop_path_rate": rate} if rate else {}},
            **more.get(f"_{n}", {}),
        }
        for n, rate in rates.items()
    }


COATNET = {
    "coatnet_in1k": {
        **{
            **_PRETRAIN,
            **IN1K,
            "arch": "coatnet_0",
            "options": {"drop_path_rate": 0.2},
            "steps": 93_835,
            "decay": 0.05,
        },
        **{"warmup": 10_000 * 4096, "smoothing": 0.1, **tf_randaugment(15.0, mixup=0.8)},
    },
    **_sizes("coatnet_in1k", {1: 0.3, 2: 0.5, 3: 0.7}),
    "coatnet_in1k_finetune": {
        **{**_FINETUNE, "arch": "coatnet_0", "options": {"drop_path_rate": 0.2}, "batch": 512, "steps": 75_068},
        **tf_randaugment(15.0, mixup=0.8),
    },
    **_sizes("coatnet_in1k_finetune", {1: 0.3, 2: 0.5, 3: 0.7}, _3={"magnitude": 20.0}),
    "coatnet_in21k": {
        **{**_PRETRAIN, **IN21K, **_SIGMOID, "arch": "coatnet_2", "options": {"drop_path_rate": 0.3}, "steps": 311_948},
        **{"decay": 0.01, "warmup": 5 * 12_700_000},
    },
    **_sizes("coatnet_in21k", {3: 0.5, 4: 0.7}, _4=tf_randaugment(5.0)),
    "coatnet_in21k_finetune": {
        **{**_FINETUNE, "arch": "coatnet_2", "options": {"drop_path_rate": 0.3}, "batch": 1024, "steps": 37_534},
        **{"fresh_head": True},
    },
    **_sizes("coatnet_in21k_finetune", {3: 0.5, 4: 0.7}, _4=tf_randaugment(5.0)),
    "coatnet_jft": {
        **{
            **_PRETRAIN,
            **JFT,
            **_SIGMOID,
            "arch": "coatnet_3",
            "options": {"downsample": "depthwise"},
            "steps": 1_035_645,
        },
        **{"decay": 0.01, "warmup": 20_000 * 4096, **tf_randaugment(5.0)},
    },
    **_sizes("coatnet_jft", {4: 0.1, 5: 0.0}, _4={"lr": 5e-4}, _5={"lr": 5e-4}),
    "coatnet_jft_finetune": {
        **{
            **_FINETUNE,
            "arch": "coatnet_3",
            "options": {"downsample": "depthwise", "drop_path_rate": 0.1},
            "batch": 512,
        },
        **{"steps": 75_068, "fresh_head": True, **tf_randaugment(5.0)},
    },
    **_sizes("coatnet_jft_finetune", {4: 0.3, 5: 0.2}),
}

# arXiv 1912.11370, sections 3.1 and 3.3; bit_hyperrule.py of google-research/big_transfer
_BIT: Row = {
    **{"arch": "bit_r50x1", "batch": 4096, "warmup": 5000 * 4096, **INCEPTION, **steps_at(30 / 90, 60 / 90, 80 / 90)},
    **sgd(0.03 * 4096 / 256, 1e-4, decays="all"),
}
BIT = {
    "bit_s": {**_BIT, **IN1K, "steps": 28_151},
    "bit_m": {**_BIT, **IN21K, "steps": 311_948, "loss": "sigmoid", "head_bias": -10.0},
    "bit_l": {
        **{**_BIT, **JFT, "arch": "bit_r152x4", "steps": 2_958_984, "loss": "sigmoid", "head_bias": -10.0},
        **steps_at(10 / 40, 23 / 40, 30 / 40, 37 / 40),
    },
    "bit_hyperrule": {
        **{**IN1K, "arch": "bit_r50x1", "batch": 512, "steps": 20_000, "warmup": 500 * 512, **steps_at(0.3, 0.6, 0.9)},
        **{"image_size": 384, "eval_crop": 1.0, "crop_side": 384 / 448, "min_area": 1.0, "jitter_ratio": False},
        **{"mixup": 0.1, "fresh_head": True, **sgd(3e-3, 0.0)},
    },
    "bit_hyperrule + bit_hyperrule/medium": {"steps": 10_000},
    "bit_hyperrule + bit_hyperrule/small": {
        **{"steps": 500, "warmup": 100 * 512, "mixup": 0.0, **steps_at(200 / 500, 300 / 500, 400 / 500)},
    },
    "bit_hyperrule + bit_hyperrule/480": {"image_size": 480, "crop_side": 480 / 512},
    "bit_hyperrule + bit_hyperrule/small_images": {"image_size": 128, "crop_side": 128 / 160},
}

# A1 to A3: arXiv 2110.00476, Table 2, and configs/resnet of open-mmlab/mmpretrain. tv1, tv2: references/classification of
# pytorch/vision; its average moves by 1 - ema**32 = 2e-5 x 1024 x 32 / 600 every 32 steps.
_RSB: Row = {
    **{
        **IN1K,
        "arch": "resnet50",
        "optimizer": "lamb",
        "batch": 2048,
        "warmup": 5 * EPOCH,
        "last_lr": 1e-6,
        "clip": 1.0,
    },
    **{"loss": "sigmoid_mean", "eval_crop": 0.95, "threshold": 0.0},
}
_TV2: Row = {
    **{
        **IN1K,
        "batch": 1024,
        "steps": 750_684,
        "repeats": 4,
        "warmup": 5 * EPOCH,
        "smoothing": 0.1,
        "policy": "trivialaugment",
    },
    **{"erasing": 0.1, "mixup": 0.2, "cutmix": 1.0, "ema": (1 - 2e-5 * 1024 * 32 / 600) ** (1 / 32), **sgd(0.5, 2e-5)},
}
CNN = {
    "resnet50_a1": {
        **{**_RSB, "steps": 375_342, "lr": 5e-3, "decay": 0.01, "smoothing": 0.1, "options": {"drop_path_rate": 0.05}},
        **{"repeats": 3, **timm_randaugment(7.0, mixup=0.2)},
    },
    "resnet50_a2": {
        **{**_RSB, "steps": 187_671, "lr": 5e-3, "decay": 0.02, "options": {"drop_path_rate": 0.05}, "repeats": 3},
        **timm_randaugment(7.0, mixup=0.1),
    },
    "resnet50_a3": {
        **{**_RSB, "steps": 62_557, "lr": 8e-3, "decay": 0.02, "image_size": 160, **timm_randaugment(6.0, mixup=0.1)},
    },
    "resnet50_tv1": {
        **{**IN1K, "arch": "resnet50", "batch": 256, "steps": 450_410, **steps_at(30 / 90, 60 / 90)},
        **sgd(0.1, 1e-4, decays="all"),
    },
    "resnet50_tv2": {**_TV2, "arch": "resnet50", "image_size": 176, "eval_crop": 224 / 232},
    "efficientnetv2": {
        **{**_TV2, "arch": "timm:efficientnetv2_s", "options": {"drop_rate": 0.2, "drop_path_rate": 0.2}},
        **{"image_size": 300, "eval_crop": 1.0},
    },
    "efficientnetv2 + efficientnetv2/m": {
        **{"arch": "timm:efficientnetv2_m", "options": {"drop_rate": 0.3, "drop_path_rate": 0.2}, "image_size": 384},
    },
    # arXiv 2201.03545, Table 5; TRAINING.md and main.py of facebookresearch/ConvNeXt
    "convnext": {
        **{**IN1K, "arch": "timm:convnext_tiny", "options": {"drop_path_rate": 0.1}, "batch": 4096, "steps": 93_835},
        **{"lr": 4e-3, "decay": 0.05, "warmup": 20 * EPOCH, "last_lr": 1e-6, "smoothing": 0.1, "ema": 0.9999},
        **{"erasing": 0.25, **timm_randaugment(9.0, mixup=0.8)},
    },
    "convnext + convnext/small": {"arch": "timm:convnext_small", "options": {"drop_path_rate": 0.4}},
    "convnext + convnext/base": {"arch": "timm:convnext_base", "options": {"drop_path_rate": 0.5}},
}

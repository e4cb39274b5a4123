"""Published settings of Vision Transformers; see published.py."""

from tests.experiments.rows import EPOCH, IN1K, IN21K, INCEPTION, JFT, Row, sgd, tf_randaugment, timm_randaugment

__all__ = ["AUGREG", "DEIT", "PLAIN_VIT", "SCALING", "VIT"]

# arXiv 2205.01580, Table 1; big_vision/configs/vit_s16_i1k.py
PLAIN_VIT = {
    "plain_vit_s16": {
        **{
            "arch": "vit_s16",
            "options": {"pool": "gap", "posemb": "sincos2d", "representation_layer": True, "gelu": "tanh"},
        },
        **{
            "batch": 1024,
            "steps": 112_603,
            "lr": 1e-3,
            "decay": 0.1,
            "momentum_dtype": "bfloat16",
            "warmup": 10_000 * 1024,
        },
        **{"clip": 1.0, **IN1K, **INCEPTION, **tf_randaugment(10.0, mixup=0.2)},
    },
    "plain_vit_s16 + plain_vit_s16/150_epochs": {"steps": 187_671},
    "plain_vit_s16 + plain_vit_s16/300_epochs": {"steps": 375_342},
    "in1k": {
        **{"arch": "vit_s16", "batch": 1024, "steps": 112_603, "lr": 1e-3, "decay": 0.1, "warmup": 10_000 * 1024},
        **{"clip": 1.0, **IN1K, **INCEPTION, **tf_randaugment(10.0, mixup=0.2)},
    },
}

# arXiv 2106.10270, sections 3.3 and 3.4; big_vision/configs/vit_i1k.py and vit_i21k.py
LEVELS = {
    "none": {"policy": "none", "magnitude": None, "mixup": 0.0},
    "light1": tf_randaugment(0.0, mixup=0.0),
    "light2": tf_randaugment(10.0, mixup=0.2),
    "medium1": tf_randaugment(15.0, mixup=0.2),
    "medium2": tf_randaugment(15.0, mixup=0.5),
    "strong1": tf_randaugment(20.0, mixup=0.5),
    "strong2": tf_randaugment(20.0, mixup=0.8),
    "regularised": {"options": {"gelu": "tanh", "dropout_rate": 0.1, "drop_path_rate": 0.1}},
}
_AUGREG: Row = {
    **{
        "arch": "vit_b16",
        "options": {"gelu": "tanh"},
        "batch": 4096,
        "lr": 1e-3,
        "decay": 0.1,
        "warmup": 10_000 * 4096,
    },
    **{"momentum_dtype": "bfloat16", "loss": "sigmoid", "clip": 1.0, **INCEPTION},
}
AUGREG = {
    "augreg_in1k": {**_AUGREG, **IN1K, "steps": 93_835, "head_bias": -6.9, **LEVELS["medium2"]},
    "augreg_in21k": {**_AUGREG, **IN21K, "steps": 1_039_828, "head_bias": -10.0, **LEVELS["light2"]},
    "augreg_in21k + augreg/30_epochs": {"steps": 103_983},
    **{f"{name} + augreg/{level}": row for level, row in LEVELS.items() for name in ("augreg_in1k", "augreg_in21k")},
}

# arXiv 2012.12877, Table 9, and main.py of facebookresearch/deit; arXiv 2204.07118 and its README_revenge.md
_FACEBOOK: Row = {**IN1K, "warmup": 5 * EPOCH, "interpolation": "bicubic", "mixup": 0.8, "cutmix": 1.0}
_DEIT3_OPTIONS = {"layer_scale": 1e-4, "posemb_on_class_token": False}
DEIT = {
    "deit": {
        **{
            **_FACEBOOK,
            "arch": "vit_s16",
            "options": {"drop_path_rate": 0.1},
            "batch": 1024,
            "steps": 375_342,
            "lr": 1e-3,
        },
        **{"repeats": 3, "decay": 0.05, "last_lr": 1e-5, "smoothing": 0.1, "erasing": 0.25, **timm_randaugment(9.0)},
    },
    "deit3": {
        **{**_FACEBOOK, "arch": "vit_s16", "options": {**_DEIT3_OPTIONS, "drop_path_rate": 0.05}, "optimizer": "lamb"},
        **{"batch": 2048, "repeats": 3, "steps": 500_456, "lr": 4e-3, "decay": 0.05, "last_lr": 1e-5, "clip": 1.0},
        **{"loss": "sigmoid_mean", "policy": "three_augment", "color_jitter": 0.3, "eval_crop": 1.0},
    },
    **{
        f"deit3 + deit3/{size}": {
            **{"arch": f"vit_{size}", "options": {**_DEIT3_OPTIONS, "drop_path_rate": rate}, "lr": 3e-3},
            **{"image_size": side},
        }
        for size, rate, side in (("b16", 0.2, 192), ("l16", 0.45, 192), ("h14", 0.6, 160))
    },
    "deit3_finetune": {
        **{**_FACEBOOK, "arch": "vit_b16", "options": {**_DEIT3_OPTIONS, "drop_path_rate": 0.2}, "batch": 512},
        **{"steps": 50_046, "lr": 1e-5, "decay": 0.1, "schedule": "constant", "smoothing": 0.1, "eval_crop": 1.0},
        **timm_randaugment(9.0),
    },
}

# arXiv 2010.11929, Tables 3 and 4; arXiv 2106.10270, section 3.4
_VIT: Row = {"arch": "vit_b16", "batch": 4096, "warmup": 10_000 * 4096, **INCEPTION}
_JAX = {"representation_layer": True, "gelu": "tanh"}
_SIGMOID_VIT: Row = {"schedule": "linear", "loss": "sigmoid", "head_bias": -10.0}
VIT = {
    "vit_jft": {**_VIT, **JFT, **_SIGMOID_VIT, "options": _JAX, "steps": 517_822, "lr": 8e-4, "decay": 0.1},
    "vit_jft + vit_jft/l32": {"arch": "vit_l32", "lr": 6e-4},
    "vit_jft + vit_jft/l16": {"arch": "vit_l16", "lr": 4e-4, "steps": 1_035_645},
    "vit_jft + vit_jft/h14": {"arch": "vit_h14", "lr": 3e-4, "steps": 1_035_645},
    "vit_jft + vit_jft/r50_l32": {"arch": "vit_r50_l32", "lr": 2e-4},
    "vit_jft + vit_jft/r50_l16": {"arch": "vit_r50_l16", "lr": 4e-4, "steps": 1_035_645},
    "vit_in21k": {
        **{**_VIT, **IN21K, **_SIGMOID_VIT, "options": {**_JAX, "dropout_rate": 0.1}, "steps": 311_948, "lr": 1e-3},
        **{"decay": 0.03},
    },
    "vit_in1k": {
        **{**_VIT, **IN1K, "options": {**_JAX, "dropout_rate": 0.1}, "steps": 93_835, "lr": 3e-3, "decay": 0.3},
        **{"clip": 1.0},
    },
    "vit_finetune": {
        **{**IN1K, **INCEPTION, "arch": "vit_b16", "options": {"gelu": "tanh"}, "batch": 512, "steps": 20_000},
        **{"warmup": 500 * 512, "clip": 1.0, "image_size": 384, "fresh_head": True},
        **sgd(0.01, 0.0, momentum_dtype="bfloat16"),
    },
    "vit_finetune + vit_finetune/mlp_head": {"options": _JAX},
    "vit_finetune + vit_finetune/map_head": {"options": {"pool": "map", "gelu": "tanh"}},
    "vit_finetune + vit_finetune/512": {"image_size": 512, "ema": 0.9999},
    "vit_finetune + transfer/cifar10": {"classes": 10, "steps": 10_000, "eval_crop": 1.0},
    "vit_finetune + transfer/cifar100": {"classes": 100, "steps": 10_000, "eval_crop": 1.0},
    "vit_finetune + transfer/pets": {"classes": 37, "steps": 500, "warmup": 100 * 512, "eval_crop": 1.0},
    "vit_finetune + transfer/flowers": {"classes": 102, "steps": 500, "warmup": 100 * 512, "eval_crop": 1.0},
    "vit_finetune + transfer/vtab": {
        **{"steps": 2500, "eval_crop": 1.0, "min_area": 1.0, "jitter_ratio": False, "others": {"flip": False}},
    },
}

# arXiv 2106.04560, section 3; big_vision/configs/proj/scaling_laws/train_vit_g.py
SCALING = {
    "scaling_vit": {
        **{
            "arch": "vit_l16",
            "options": {"pool": "map", "gelu": "tanh"},
            "classes": 29_593,
            "multi_label": True,
            "batch": 4096,
        },
        **{"steps": 400_000, "optimizer": "adafactor", "lr": 8e-4, "decay": 0.03, "head_decay": 3.0, "clip": 1.0},
        **{"momentum_dtype": "bfloat16", "schedule": "rsqrt", "warmup": 10_000 * 4096, "timescale": 10_000 * 4096},
        **{"cooldown": 50_000 * 4096, "loss": "sigmoid", "head_bias": -10.0, **INCEPTION},
    },
    "scaling_vit + scaling_vit/giant14": {
        **{"arch": "vit_giant14", "batch": 16_384, "steps": 1_000_000, "warmup": 10_000 * 16_384},
        **{"timescale": 10_000 * 16_384, "cooldown": 50_000 * 16_384},
    },
}

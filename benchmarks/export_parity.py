"""Largest difference of two logits between a model and its exported files, for models of published sizes.

    python benchmarks/export_parity.py [--archs vit_ti16,resnet50] [--json FILE]

Weights are random, from seed 0, with classifiers drawn so that logits are of order 1, and batch norms that don't stand at
mean 0 and variance 1. Each model is written as .pt2 and as .onnx, loaded afresh and run on 8 images of noise, as `vitlight
export` does it.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch import nn

from vitlight.models import build_model, default_image_size
from vitlight.models.weights import save_weights
from vitlight.prediction.export import export_model
from vitlight.training.record import package_versions
from vitlight.training.trained import load_trained

ARCHS = ("vit_ti16", "vit_b32", "vit_r26_s32", "coatnet_0", "resnet50", "bit_r50x1")


def save_random(arch: str, path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(arch, 1000, default_image_size(arch))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("head."):
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1)
        for module in model.modules():
            if (
                isinstance(module, nn.BatchNorm2d)
                and module.running_mean is not None
                and module.running_var is not None
            ):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.8, 1.2)
    save_weights(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default=",".join(ARCHS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for arch in args.archs.split(","):
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.safetensors"
            save_random(arch, weights)
            trained = load_trained(weights, arch=arch)
            row: dict[str, object] = {"arch": arch, "image_size": trained.image_size}
            targets = [Path(folder) / "model.pt2", Path(folder) / "model.onnx"]
            for target, parity in export_model(trained, targets, tolerance=float("inf")).items():
                row |= {target.suffix: parity.max_difference, "max_logit": parity.max_logit}
            rows.append(row)
            print(
                f"| `{arch}` | {row['image_size']} | {row['max_logit']:.3g} | {row['.pt2']:.1e} | {row['.onnx']:.1e} |",
                flush=True,
            )
    if args.json is not None:
        args.json.write_text(json.dumps({"rows": rows, "versions": package_versions()}, indent=1) + "\n")


if __name__ == "__main__":
    main()

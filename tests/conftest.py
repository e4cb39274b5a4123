"""Tiny real shards and the command lines that train on them."""

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser import Browser, start_browser
from vitlight.data.shards import Sample, write_shards

ROOT = Path(__file__).resolve().parent.parent
os.environ["WANDB_MODE"] = "disabled"  # tests of W&B set their own
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["VITLIGHT_CACHE"] = tempfile.mkdtemp(prefix="vitlight-cache-")  # nothing of the user's is read or written


def tiny_sample(index: int, split: str, size: int = 28) -> Sample:
    """A noisy image whose class (0 to 3) is the bright quadrant, as PNG or, every third one, as JPEG."""
    rng = np.random.default_rng([index, split == "test"])
    label = index % 4
    pixels = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
    half = size // 2
    pixels[label // 2 * half :, label % 2 * half :][:half, :half] += 100
    buffer, extension = io.BytesIO(), ("jpg" if index % 3 == 0 else "png")
    Image.fromarray(pixels).save(buffer, {"jpg": "jpeg", "png": "png"}[extension], quality=95)
    return Sample(key=f"{split}/{index:05d}", image=buffer.getvalue(), extension=extension, label=label)


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ (200 images in 7 shards, the last one smaller) and test/ (61 images in 3 shards)."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards((tiny_sample(i, "train") for i in range(200)), folder / "train", samples_per_shard=32)
    write_shards((tiny_sample(i, "test") for i in range(61)), folder / "test", samples_per_shard=25)
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from start_browser(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def fit_args(tiny_shards: Path, tmp_path: Path) -> list[str]:
    """`fit` of a small ViT for 12 steps of 16 images, evaluated three times, without W&B."""
    return [
        "fit",
        f"--config={ROOT / 'experiments' / 'base.yaml'}",
        f"--run.root={tmp_path / 'runs'}",
        "--run.name=tiny",
        "--run.num_evaluations=3",
        "--run.checkpoint_every_steps=5",
        "--run.log_every_steps=2",
        "--run.wandb=false",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--model.arch=vit_nano1",
        "--model.duration.samples=192",
        f"--data.train={tiny_shards / 'train'}",
        f"--data.test={tiny_shards / 'test'}",
        "--data.num_classes=4",
        "--data.image_size=28",
        "--data.global_batch_size=16",
        "--data.val_fraction=0.2",
        "--data.num_workers=0",
    ]

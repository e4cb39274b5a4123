from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import tiny_sample
from vitlight.data.augment import CropAndFlip
from vitlight.data.datamodule import ShardedImages
from vitlight.data.decode import decode_image
from vitlight.data.shards import write_shards
from vitlight.errors import InputError


def build(tiny_shards, trainer=None, **changes) -> ShardedImages:
    settings = {
        "train": str(tiny_shards / "train"),
        "test": str(tiny_shards / "test"),
        "num_classes": 4,
        "image_size": 28,
        "global_batch_size": 16,
        "val_fraction": 0.2,
        "eval_crop": 1.0,
        **changes,
    }
    data = ShardedImages(**settings)
    data.trainer = trainer or SimpleNamespace(global_rank=0, world_size=1, accumulate_grad_batches=1)
    data.prepare()
    data.num_steps = 12
    return data


def collect(loader) -> dict[str, torch.Tensor]:
    batches = list(loader)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing(tiny_shards, num_workers):
    alone = collect(build(tiny_shards).train_dataloader())
    many = collect(build(tiny_shards, num_workers=num_workers).train_dataloader())
    for name, values in alone.items():
        assert torch.equal(values, many[name])
    loader = build(tiny_shards, num_workers=num_workers).train_dataloader()
    assert loader.multiprocessing_context.get_start_method() == "forkserver"


def test_a_loader_starts_at_any_step(tiny_shards):
    whole = list(build(tiny_shards).train_dataloader())
    data = build(tiny_shards)
    data.start_step = 7
    rest = list(data.train_dataloader())
    assert len(data.train_dataloader()) == len(rest) == 5
    for left, right in zip(whole[7:], rest, strict=True):
        assert torch.equal(left["image"], right["image"])


def test_ranks_and_accumulation_share_the_same_global_batch(tiny_shards):
    alone = list(build(tiny_shards).train_dataloader())
    parts = []
    for rank in range(2):
        trainer = SimpleNamespace(global_rank=rank, world_size=2, accumulate_grad_batches=2)
        parts.append(list(build(tiny_shards, trainer).train_dataloader()))
    assert len(parts[0]) == 24
    for step in range(12):
        images = [parts[rank][2 * step + micro]["image"] for rank in range(2) for micro in range(2)]
        assert torch.equal(torch.cat(images), alone[step]["image"])


def test_evaluation_images_are_the_decoded_ones_in_uint8(tiny_shards):
    data = build(tiny_shards, eval_batch_size=16)
    got = collect(data.test_dataloader())
    assert got["image"].dtype == torch.uint8
    assert got["image"].shape == (64, 3, 28, 28)
    assert got["weight"].tolist() == [1.0] * 61 + [0.0] * 3
    assert got["label"][:61].tolist() == [i % 4 for i in range(61)]
    for i in (0, 3, 60):
        expected = decode_image(tiny_sample(i, "test").image)
        assert np.array_equal(got["image"][i].permute(1, 2, 0).numpy(), expected)


def test_images_are_normalised_on_the_device_in_float32(tiny_shards):
    data = build(tiny_shards, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    batch = next(iter(data.test_dataloader()))
    after = data.on_after_batch_transfer(batch, 0)
    expected = (batch["image"].double() / 255 - data.mean) / data.std
    assert after["image"].dtype == torch.float32
    assert torch.allclose(after["image"].double(), expected, atol=1e-6)
    assert batch["image"].dtype == torch.uint8


def test_training_crops_differ_between_epochs_but_not_between_runs(tiny_shards):
    data = build(tiny_shards, num_train_samples=16, augmentation=CropAndFlip(min_area=0.3))
    by_epoch = []
    for batch, request in zip(data.train_dataloader(), data.plan.micro_batches(0, 12), strict=True):
        by_epoch.append({int(i): image for i, image in zip(request.ids, batch["image"], strict=True)})
    assert all(sorted(epoch) == sorted(by_epoch[0]) for epoch in by_epoch)
    moved = sum(not torch.equal(by_epoch[0][i], by_epoch[1][i]) for i in by_epoch[0])
    assert moved >= 14


def test_grey_images_and_other_sizes(tiny_shards):
    batch = next(iter(build(tiny_shards, channels=1, image_size=20).train_dataloader()))
    assert batch["image"].shape == (16, 1, 20, 20)


def test_subsets_are_the_same_for_every_seed_and_nested(tiny_shards):
    small = build(tiny_shards, num_train_samples=20, seed=1).plan.epoch_ids(0, 0, 20)
    large = build(tiny_shards, num_train_samples=80, seed=2).plan.epoch_ids(0, 0, 80)
    half = build(tiny_shards, train_fraction=0.5, seed=2).plan.epoch_ids(0, 0, 80)
    assert set(small) < set(large)
    assert large.tolist() == half.tolist()
    val = set(build(tiny_shards, seed=3).val_ids.tolist())
    assert not val & set(large.tolist())


def test_a_missing_shard_is_named_before_anything_is_trained(tmp_path):
    write_shards((tiny_sample(i, "train") for i in range(40)), tmp_path / "train", samples_per_shard=10)
    data = ShardedImages(train=str(tmp_path / "train" / "shard-{000000..000003}.tar"), num_classes=4, image_size=28)
    (tmp_path / "train" / "shard-000002.tar").unlink()
    with pytest.raises(InputError, match=r"shard-000002\.tar"):
        data.prepare()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [0.5, 0.5]}, r"data\.mean has 2 values for data\.channels=3"),
        ({"std": 0.0}, r"data\.std=0\.0 is not positive"),
        ({"eval_crop": 1.5}, r"data\.eval_crop=1\.5 is not in \(0, 1\]"),
        ({"num_train_samples": 3, "train_fraction": 0.1}, "both given"),
        ({"train_fraction": 2.0}, r"data\.train_fraction=2\.0"),
        ({"global_batch_size": 0}, r"data\.global_batch_size=0"),
        ({"window_shards": 0}, r"data\.window_shards=0"),
        ({"test": None}, r"data\.test is null"),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size=0"),
    ],
)
def test_settings_are_checked(tiny_shards, changes, message):
    with pytest.raises(InputError, match=message):
        build(tiny_shards, **changes).test_dataloader()

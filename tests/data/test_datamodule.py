from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import tiny_sample
from vitlight.data.augment import Augmentation
from vitlight.data.datamodule import ShardedImages
from vitlight.data.decode import decode_image
from vitlight.data.mixing import Mixing
from vitlight.data.shards import write_shards
from vitlight.errors import InputError


def world(rank: int, num_ranks: int, num_micro: int = 1) -> SimpleNamespace:
    return SimpleNamespace(global_rank=rank, world_size=num_ranks, accumulate_grad_batches=num_micro, num_nodes=1)


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
    data.trainer = trainer or world(0, 1)
    data.prepare()
    data.num_steps = 12
    return data


def collect(loader) -> dict[str, torch.Tensor]:
    batches = list(loader)
    return {name: torch.cat([batch[name] for batch in batches]) for name in ("image", "label", "weight")}


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
        parts.append(list(build(tiny_shards, world(rank, 2, 2)).train_dataloader()))
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
    data = build(tiny_shards, num_train_samples=16, augmentation=Augmentation(min_area=0.3))
    by_epoch = []
    for batch, request in zip(data.train_dataloader(), data.plan.micro_batches(0, 12), strict=True):
        by_epoch.append({int(i): image for i, image in zip(request.ids, batch["image"], strict=True)})
    assert all(sorted(epoch) == sorted(by_epoch[0]) for epoch in by_epoch)
    moved = sum(not torch.equal(by_epoch[0][i], by_epoch[1][i]) for i in by_epoch[0])
    assert moved >= 14


def test_grey_images_and_other_sizes(tiny_shards):
    batch = next(iter(build(tiny_shards, channels=1, image_size=20).train_dataloader()))
    assert batch["image"].shape == (16, 1, 20, 20)


def drawn(data: ShardedImages) -> set[int]:
    return set(data.plan.orders[0].draws(0, data.plan.num_samples).rows.tolist())


def test_subsets_are_the_same_for_every_seed_and_nested(tiny_shards):
    small = drawn(build(tiny_shards, num_train_samples=20, seed=1))
    large = drawn(build(tiny_shards, num_train_samples=80, seed=2))
    assert (len(small), len(large)) == (20, 80)
    assert small < large
    assert large == drawn(build(tiny_shards, train_fraction=0.5, seed=3))
    assert not set(build(tiny_shards, seed=3).val_ids.tolist()) & large
    each = drawn(build(tiny_shards, num_train_samples_per_class=5))
    index = build(tiny_shards).train_indexes[0]
    assert np.bincount(index.label[list(each)]).tolist() == [5, 5, 5, 5]


def test_crops_are_resized_as_asked(tiny_shards):
    first = [
        next(iter(build(tiny_shards, augmentation=Augmentation(interpolation=each)).train_dataloader()))["image"]
        for each in ("bilinear", "bicubic", "bilinear")
    ]
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    with pytest.raises(InputError, match=r"data\.augmentation\.interpolation=nearest is not bilinear or bicubic"):
        Augmentation(interpolation="nearest")


def test_sets_are_mixed_by_weight_and_validated_apart(tiny_shards):
    sources = {str(tiny_shards / "train"): 0.75, str(tiny_shards / "test"): 0.25}
    data = build(tiny_shards, train=sources, val_fraction=0.1)
    assert data.plan.num_samples == 180 + 55
    assert len(data.val_ids) == 20 + 6
    keys = [data.train_indexes[0].key(i) for i in range(200)] + [data.train_indexes[1].key(i) for i in range(61)]
    labels = np.concatenate([index.label for index in data.train_indexes])
    held_out = set(data.val_ids.tolist())
    for batch, request in zip(data.train_dataloader(), data.plan.micro_batches(0, 12), strict=True):
        assert sum(keys[i].startswith("test/") for i in request.ids) == 4
        assert batch["label"].tolist() == labels[request.ids].tolist()
        assert not held_out & set(request.ids.tolist())
    assert collect(data.val_dataloader())["weight"].sum() == 26
    alone = build(tiny_shards)
    assert data.data_digest != build(tiny_shards, train={**sources, str(tiny_shards / "test"): 0.5}).data_digest
    assert data.data_digest.startswith(f"{alone.train_indexes[0].digest}*0.75+")
    with pytest.raises(
        InputError, match=r"num_train_samples=20 with 2 sources in data\.train; use data\.train_fraction"
    ):
        build(tiny_shards, train=sources, num_train_samples=20)


def test_repeated_images_are_augmented_differently(tiny_shards):
    data = build(tiny_shards, num_repeats=2)
    batch, request = next(iter(data.train_dataloader())), next(data.plan.micro_batches(0, 1))
    assert request.ids[:8].tolist() == request.ids[8:].tolist()
    assert sum(not torch.equal(batch["image"][i], batch["image"][i + 8]) for i in range(8)) >= 7


def test_mixing_happens_on_the_device_and_needs_pairs(tiny_shards):
    data = build(tiny_shards, mixing=Mixing(mixup_alpha=0.8))
    batch = next(iter(data.train_dataloader()))
    plain = next(iter(build(tiny_shards).train_dataloader()))
    assert torch.equal(batch["image"], plain["image"])
    after = data.on_after_batch_transfer(batch, 0)
    assert after["target"].shape == (16, 4)
    assert torch.allclose(after["target"].sum(1), torch.ones(16))
    pairs = torch.nn.functional.one_hot(batch["label"], 4).float().view(8, 2, 4)
    normalised = build(tiny_shards).on_after_batch_transfer(plain, 0)["image"].reshape(8, 2, -1)
    for images, targets, pixels, mixed, labels in zip(
        after["image"].reshape(8, 2, -1),
        after["target"].view(8, 2, 4),
        normalised,
        batch["mixing"].view(8, 2, -1),
        pairs,
        strict=True,
    ):
        part = mixed[0, 0]  # lambda
        assert torch.allclose(images[0], part * pixels[0] + (1 - part) * pixels[1], atol=1e-5)
        assert torch.allclose(targets[0], part * labels[0] + (1 - part) * labels[1], atol=1e-5)
    assert "target" not in data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    with pytest.raises(InputError, match=r"data\.mixing mixes images in pairs, but a rank's batch has 5"):
        build(tiny_shards, global_batch_size=5, mixing=Mixing(cutmix_alpha=1.0)).train_dataloader()


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
        ({"num_train_samples": 161}, r"data\.num_train_samples=161 asks for 161 images, but there are 160"),
        ({"max_skipped_samples": -1}, r"data\.max_skipped_samples=-1 is not at least 0"),
        ({"num_workers": -1}, r"data\.num_workers=-1 is not at least 0"),
        ({"num_classes": 0}, r"data\.num_classes=0 is not at least 1"),
        ({"cache_gib": 0}, r"data\.cache_gib=0 is not above 0"),
        ({"num_classes": 3}, r"data\.train=.*image 'train/0\d+' has label 3, but data\.num_classes=3 allows 0 to 2"),
        ({"train": {}}, r"data\.train={} names no shards"),
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

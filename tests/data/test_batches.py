"""A worker's batches: what is in them, and what becomes of images that can't be decoded."""

import json

import numpy as np
import pytest
import torch

from tests.conftest import tiny_sample
from vitlight.data.augment import Augmentation
from vitlight.data.batches import ImageBatches, ImageSource
from vitlight.data.index import load_index
from vitlight.data.labels import LabelSource
from vitlight.data.plan import BatchRequest
from vitlight.data.store import LocalStore
from vitlight.errors import InputError


def request(*ids: int) -> BatchRequest:
    zeros = np.zeros(len(ids), np.int64)
    return BatchRequest(np.array(ids), zeros, zeros)


def batches_of(index, **changes) -> ImageBatches:
    settings = {"size": 28, "channels": 3, "seed": 0, "augmentation": Augmentation(), "eval_crop": 1.0}
    return ImageBatches([ImageSource(index, LocalStore(index.shards))], **{**settings, **changes})


@pytest.fixture
def damaged(tmp_path):
    """Five images in one shard; numbers 1 and 3 break off in the middle of their data but keep their ends."""
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "x.tar"), encoder=False) as writer:
        for i in range(5):
            image = bytearray(tiny_sample(i * 3 + 1, "train").image)  # a PNG
            if i in (1, 3):
                image[100:-100] = bytes(len(image) - 200)
            writer.write({"__key__": f"k{i}", "png": bytes(image), "cls": str(i % 4).encode()})
    return load_index(tmp_path / "x.tar")


def test_undecodable_images_stop_with_shard_and_key(damaged):
    for augmentation in (Augmentation(), None):
        with pytest.raises(InputError, match=r"image 'k1' in shard .*x\.tar can't be decoded: "):
            batches_of(damaged, augmentation=augmentation)[request(0, 1, 2)]


def test_undecodable_images_are_left_out_with_weight_0(damaged):
    batch = batches_of(damaged, skip_undecodable=True)[request(1, 0, 3, 4)]
    assert batch["weight"].tolist() == [0, 1, 0, 1]
    assert [fault.split("'")[1] for fault in batch["skipped"]] == ["k1", "k3"]
    alone = batches_of(damaged)[request(0, 4)]
    assert torch.equal(batch["image"][1], alone["image"][0])
    assert torch.equal(batch["image"][0], alone["image"][0])  # a stand-in: no blank image reaches batch statistics
    nothing = batches_of(damaged, skip_undecodable=True)[request(1, 3)]
    assert nothing["weight"].tolist() == [0, 0]
    assert not nothing["image"].any()
    assert alone["skipped"] == []


@pytest.fixture
def damaged_jpeg(tmp_path):
    """One JPEG with a run of zeros in the middle: only decoding it to its end shows that."""
    import io

    import webdataset
    from PIL import Image

    buffer = io.BytesIO()
    small = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
    Image.fromarray(small).resize((320, 320), Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=90)
    image = bytearray(buffer.getvalue())
    image[1000:1200] = bytes(200)
    with webdataset.TarWriter(str(tmp_path / "x.tar"), encoder=False) as writer:
        writer.write({"__key__": "k", "jpg": bytes(image), "cls": b"0"})
    return load_index(tmp_path / "x.tar")


def test_damage_is_noticed_whatever_the_crop(damaged_jpeg):
    """So in the first epoch, and always where damage may be left out, JPEGs are decoded to their end."""
    for epoch in range(20):
        asked = BatchRequest(np.array([0]), np.array([epoch]), np.array([0]))
        assert batches_of(damaged_jpeg, skip_undecodable=True)[asked]["weight"].tolist() == [0]
        if epoch == 0:
            with pytest.raises(InputError, match="'k' in shard"):
                batches_of(damaged_jpeg)[asked]


def test_only_images_seen_before_are_decoded_in_part(tiny_shards, monkeypatch):
    from vitlight.data import decode

    index = load_index(tiny_shards / "train")
    jpegs = [i for i in range(len(index)) if index.key(i)[-5:].isdigit() and int(index.key(i)[-5:]) % 3 == 0][:8]
    asked = []
    whole = decode.decode_rows

    def watched(encoded, channels, height, width, last_row, factor=1):
        asked.append((last_row, height))
        return whole(encoded, channels, height, width, last_row, factor)

    monkeypatch.setattr(decode, "decode_rows", watched)
    for epoch, skips in ((0, False), (1, True), (1, False)):
        asked.clear()
        epochs = np.full(8, epoch)
        batches_of(index, skip_undecodable=skips)[BatchRequest(np.array(jpegs), epochs, np.zeros(8, np.int64))]
        assert len(asked) == 8
        assert all(last_row == height for last_row, height in asked) == (epoch == 0 or skips)


def test_several_labels_of_an_image_travel_as_pairs(tmp_path):
    import webdataset

    wanted = [[2], [0, 3], [1, 2, 3]]
    with webdataset.TarWriter(str(tmp_path / "x.tar"), encoder=False) as writer:
        for i, labels in enumerate(wanted):
            described = json.dumps({"label": labels}).encode()
            writer.write({"__key__": f"k{i}", "png": tiny_sample(i * 3 + 1, "train").image, "json": described})
    index = load_index(tmp_path / "x.tar", labels=LabelSource(multi=True))
    batch = batches_of(index)[request(2, -1, 0, 1)]
    assert batch["label"].tolist() == [1, 0, 2, 0]
    pairs = list(zip(batch["more_rows"].tolist(), batch["more_labels"].tolist(), strict=True))
    assert pairs == [(0, 2), (0, 3), (3, 3)]
    assert batch["weight"].tolist() == [1, 0, 1, 1]


def test_an_image_is_the_same_in_whatever_batch_it_comes(tiny_shards):
    index = load_index(tiny_shards / "train")
    batches = batches_of(index, augmentation=Augmentation(policy="trivialaugment"))
    whole = batches[request(*range(12))]["image"]
    for i in (0, 5, 11):
        assert torch.equal(batches[request(-1, i, 3)]["image"][1], whole[i])


def test_each_shard_is_asked_for_once(tiny_shards, monkeypatch):
    index = load_index(tiny_shards / "train")
    asked = []
    whole = type(index).will_need
    monkeypatch.setattr(type(index), "will_need", lambda self, shards: asked.append(shards) or whole(self, shards))
    batches = batches_of(index)
    first = batches[request(0, 40, 1)]["label"]
    batches[request(41, -1, 2)]
    batches[request(199, 41)]
    assert asked == [[0, 1], [6]]
    assert first.tolist() == index.label[[0, 40, 1]].tolist()

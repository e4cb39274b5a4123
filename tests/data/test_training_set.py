import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import webdataset

from tests.conftest import tiny_sample
from vitlight.data.index import load_index
from vitlight.data.labels import LabelSource
from vitlight.data.subset import SubsetRule
from vitlight.data.training_set import IndexOptions, check_labels, check_same_numbers, named_sources, open_training_set
from vitlight.errors import InputError


def open_set(source, rule=SubsetRule(), **settings):  # noqa: B008  frozen
    return open_training_set(source, IndexOptions(), rule, **{"seed": 0, "global_batch_size": 16, **settings})


def test_sources_and_their_weights():
    assert named_sources("a") == [("a", 1.0)]
    assert named_sources(["a", "b"]) == [(["a", "b"], 1.0)]
    assert named_sources({"a": 3, "b": 0.5}) == [("a", 3.0), ("b", 0.5)]
    for pattern in ("{a,b}/{0..3}.tar", "{http://a/x.tar,http://b/x.tar}", "{pipe:cat a.tar,pipe:cat b.tar}"):
        assert named_sources(pattern) == [(pattern, 1.0)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "data.train={} names no shards"),
        ({"a": 1.0, "b": 0.0}, "data.train: the weight 0.0 of b is not a number above 0"),
        ({"a": -1.0}, "data.train: the weight -1.0 of a is not a number above 0"),
        ({"a": float("inf")}, "data.train: the weight inf of a is not a number above 0"),
        ({"a": float("nan")}, "data.train: the weight nan of a is not a number above 0"),
        # As the command line hands over what it can't read as {text: number}.
        ('{"a": 1, "b": null}', 'data.train={"a": 1, "b": null} is no mixture: {shards: weight}'),
        ('{"a": "much"}', "each weight a number above 0"),
    ],
)
def test_what_is_no_mixture(source, message):
    with pytest.raises(InputError) as error:
        named_sources(source)
    assert message in str(error.value)


def test_one_set_and_what_is_held_out(tiny_shards):
    training = open_set(str(tiny_shards / "train"), SubsetRule(val_fraction=0.2, num_samples=64))
    (index,) = training.indexes
    drawn = training.plan.batch(0).ids.tolist()
    for step in range(1, 4):
        drawn += training.plan.batch(step).ids.tolist()
    assert len(set(drawn)) == training.plan.num_samples == 64
    assert len(training.val_ids) == 40
    assert not set(drawn) & set(training.val_ids.tolist())
    assert np.bincount(index.label[drawn]).tolist() == [16] * 4
    assert training.digest == index.digest == load_index(tiny_shards / "train").digest


def test_a_list_is_one_set_and_a_mapping_several(tiny_shards):
    names = [str(tiny_shards / "train"), str(tiny_shards / "test")]
    joined = open_set(names)
    assert (len(joined.indexes), joined.plan.num_samples) == (1, 261)
    mixed = open_set(dict.fromkeys(names, 1.0), SubsetRule(val_fraction=0.1, fraction=0.5))
    assert [len(index) for index in mixed.indexes] == [200, 61]
    # Every fraction is of each: 200 - 20 and 61 - 6, of both a half.
    assert [order.num_samples for order in mixed.plan.orders] == [90, 28]
    assert mixed.val_ids.tolist() == sorted(mixed.val_ids.tolist())
    assert [int((mixed.val_ids < 200).sum()), int((mixed.val_ids >= 200).sum())] == [20, 6]
    assert mixed.digest == "+".join(f"{index.digest}*1" for index in mixed.indexes)
    assert mixed.plan.digest != open_set(dict(zip(names, (2.0, 1.0), strict=True))).plan.digest


def test_what_defines_the_plan_and_what_does_not(tiny_shards, tmp_path):
    train = str(tiny_shards / "train")
    digest = open_set(train).plan.digest
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (tiny_shards / "train").glob("*.tar"):
        (copy / path.name).write_bytes(path.read_bytes())
    assert open_set(str(copy)).plan.digest == digest, "where shards lie is no part of it"
    changes = ({"seed": 1}, {"global_batch_size": 8}, {"window_shards": 2}, {"num_streams": 2}, {"num_repeats": 2})
    digests = {open_set(train, **change).plan.digest for change in changes}
    digests.add(open_set(train, SubsetRule(num_samples=199)).plan.digest)
    digests.add(open_set(train, SubsetRule(val_fraction=0.01)).plan.digest)
    assert len(digests | {digest}) == 8


@pytest.mark.parametrize(
    ("source", "rule", "message"),
    [
        ({"train": 1.0, "test": 0.0}, {}, r"the weight 0\.0 of \S+/test is not a number above 0"),
        (
            {"train": 1.0, "train/shard-000002.tar": 1.0},
            {},
            r"shard-000002\.tar is in two of its sources; name each shard once",
        ),
        (
            {"train": 1.0, "test": 1.0},
            {"num_samples": 5},
            r"data\.num_train_samples=5 with 2 sources .* data\.train_fraction",
        ),
        ("train", {"num_samples": 0}, r"data\.num_train_samples=0 asks for 0 images, but there are 200"),
        (
            "train",
            {"num_samples": 190, "val_fraction": 0.2},
            r"asks for 190 images, but there are 160 .*data\.val_fraction",
        ),
        (
            "train",
            {"fraction": 0.001},
            r"data\.train_fraction=0\.001 asks for 0 images, but there are 200 for training",
        ),
        ("none", {}, r"none: can't read this shard: No such file"),
    ],
)
def test_bad_settings_are_named(tiny_shards, source, rule, message):
    named = source if isinstance(source, dict) else {source: 1.0}
    named = {str(tiny_shards / name): weight for name, weight in named.items()}
    with pytest.raises(InputError, match=message) as error:
        open_set(named if isinstance(source, dict) else next(iter(named)), SubsetRule(**rule))
    assert "\n" not in str(error.value)


def test_sets_that_name_their_classes_differently_are_not_mixed(tmp_path):
    for folder, names in (("a", ("cat", "dog")), ("b", ("dog", "cat"))):
        (tmp_path / folder).mkdir()
        with webdataset.TarWriter(str(tmp_path / folder / "0.tar"), encoder=False) as writer:
            for i in range(8):
                sample = tiny_sample(i, folder)
                writer.write({"__key__": f"{folder}{i}", sample.extension: sample.image, "cls": names[i % 2].encode()})
        (tmp_path / folder / "classes.txt").write_text("\n".join(names))
    with pytest.raises(
        InputError, match=r"data\.train: .*/a and .*/b name their classes differently; index them alike"
    ):
        open_set({str(tmp_path / "a"): 1.0, str(tmp_path / "b"): 1.0})
    # Names are looked up, so the one file for both gives each image its class.
    options = IndexOptions(LabelSource(class_file=str(tmp_path / "a" / "classes.txt")), index_dir=tmp_path / "index")
    training = open_training_set(
        {str(tmp_path / "a"): 1.0, str(tmp_path / "b"): 1.0}, options, SubsetRule(), seed=0, global_batch_size=8
    )
    assert [index.label.tolist() for index in training.indexes] == [[0, 1] * 4, [1, 0] * 4]


@pytest.mark.parametrize(
    ("names", "ours", "message"),
    [
        (("cat", "dog"), ("cat", "dog", "eel"), None),
        (
            ("cat", "eel"),
            ("cat", "dog", "eel"),
            r"x: class 'eel' is number 1 there and 2 in data\.train, .*; pack it anew",
        ),
        (("n01", "n02"), ("cat", "dog"), None),  # in other words
        (None, ("cat", "dog"), None),
        (("dog", "cat"), None, None),
    ],
)
def test_a_class_has_one_number(tiny_shards, names, ours, message):
    index = dataclasses.replace(load_index(tiny_shards / "test"), class_names=names)
    if message is None:
        check_same_numbers(index, ours, "x", "pack it anew")
    else:
        with pytest.raises(InputError, match=message):
            check_same_numbers(index, ours, "x", "pack it anew")


def test_labels_beyond_num_classes_are_named(tiny_shards, tmp_path):
    index = load_index(tiny_shards / "test")
    check_labels(index, 4, "data.test=x")
    with pytest.raises(
        InputError, match=r"^data\.test=x: image 'test/00003' has label 3, but data\.num_classes=3 allows 0 to 2$"
    ):
        check_labels(index, 3, "data.test=x")
    with webdataset.TarWriter(str(tmp_path / "0.tar"), encoder=False) as writer:
        for i, labels in enumerate(("0 1", "1 0 6", "2")):
            sample = tiny_sample(i, "train")
            writer.write({"__key__": sample.key, sample.extension: sample.image, "cls": labels.encode()})
    index = load_index(tmp_path / "0.tar", labels=LabelSource(multi=True))
    check_labels(index, 7, "data.train=x")
    with pytest.raises(InputError, match=r"image 'train/00001' has label 6, but data\.num_classes=5 allows 0 to 4"):
        check_labels(index, 5, "data.train=x")


def test_neither_torch_nor_lightning_nor_pandas_is_imported():
    code = (
        "import sys, vitlight.data.training_set, vitlight.data.plan_view, vitlight.data.commands\n"
        "assert not {'torch', 'lightning', 'pandas', 'simplejpeg'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0

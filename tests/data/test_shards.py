import pytest

from tests.data.tars import image_bytes, read_by_webdataset, write_tar
from vitlight.data.index import load_index
from vitlight.data.shards import Sample, unfinished, write_shards
from vitlight.errors import InputError

SAMPLES = [Sample(f"d/{i:03d}", image_bytes(i), "png", i % 3) for i in range(7)]


def test_what_was_written_is_read_back(tmp_path):
    index = write_shards(SAMPLES, tmp_path / "out", samples_per_shard=3, class_names=["cat", "dog", "cow"])
    assert [shard.name for shard in index.shards] == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    assert index.shard.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert index.class_names == ("cat", "dog", "cow")
    for i, sample in enumerate(SAMPLES):
        data = index.shards[index.shard[i]].read_bytes()
        assert (index.key(i), int(index.label[i])) == (sample.key, sample.label)
        assert data[int(index.offset[i]) :][: int(index.size[i])] == sample.image
    assert load_index(tmp_path / "out").digest == index.digest
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "classes.txt", "index", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar"
    ]  # fmt: skip


def test_webdataset_reads_what_was_written(tmp_path):
    index = write_shards(SAMPLES, tmp_path / "out", samples_per_shard=3)
    read = [sample for shard in index.shards for sample in read_by_webdataset(shard)]
    assert [(each["__key__"], each["png"], int(each["cls"])) for each in read] == [
        (sample.key, sample.image, sample.label) for sample in SAMPLES
    ]


def test_equal_samples_give_equal_bytes(tmp_path):
    long = Sample("é" * 120 + "/" + "k" * 200, image_bytes(), "png", 0)
    one, two = (write_shards([*SAMPLES, long], tmp_path / name) for name in ("one", "two"))
    assert one.shards[0].read_bytes() == two.shards[0].read_bytes()
    assert one.key(7) == long.key


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("a.b", image_bytes(), "png", 0), "key 'a.b': a key's last component has no dot"),
        (Sample("a/", image_bytes(), "png", 0), "key 'a/'"),
        (Sample("__a__", image_bytes(), "png", 0), "key '__a__'"),
        (Sample("a", image_bytes(), "gif", 0), "sample 'a': extension 'gif' is none of bmp, jpeg, jpg"),
        (Sample("a", image_bytes(), "png", -1), "sample 'a' has label '-1'"),
        (Sample("a", b"no image", "png", 0), "sample 'a': its .png part .* is no image"),
        (Sample("d/001", image_bytes(), "png", 0), "key 'd/001' comes twice"),
        (Sample("a", image_bytes(), "png", 3), "sample 'a' has label 3, but classes.txt names 3 classes"),
    ],
)
def test_a_sample_that_could_not_be_read_back(tmp_path, sample, message):
    with pytest.raises(InputError, match=message):
        write_shards([*SAMPLES, sample], tmp_path / "out", class_names=["a", "b", "c"])
    with pytest.raises(InputError, match="the writing of these shards was cut off"):
        load_index(tmp_path / "out")
    assert len(write_shards(SAMPLES, tmp_path / "out")) == 7, "a torn try is redone"


def test_no_sample_and_no_room(tmp_path):
    with pytest.raises(InputError, match="there is no sample to write"):
        write_shards([], tmp_path / "out")
    with pytest.raises(InputError, match="samples_per_shard=0: a shard holds at least 1 sample"):
        write_shards(SAMPLES, tmp_path / "out", samples_per_shard=0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a"], "class name 'a' comes twice"),
        (["a", "b\nc"], "is one line of text"),
        (["a", ""], "is one line of text"),
    ],
)
def test_class_names_that_could_not_be_read_back(tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        write_shards(SAMPLES[:2], tmp_path / "out", class_names=names)


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    write_shards(SAMPLES, tmp_path / "out")
    with pytest.raises(InputError, match="not empty; choose another destination, or overwrite"):
        write_shards(SAMPLES, tmp_path / "out")
    assert len(write_shards(SAMPLES[:2], tmp_path / "out", samples_per_shard=1, overwrite=True)) == 2
    assert len(write_shards(SAMPLES[:1], tmp_path / "out", overwrite=True).shards) == 1
    assert not (tmp_path / "out/shard-000001.tar").exists()

    write_tar(tmp_path / "out/theirs.tar", [("a.cls", b"0")])
    with pytest.raises(InputError, match=r"holds theirs.tar, which vitlight did not write"):
        write_shards(SAMPLES, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/shard-000000.tar").exists()
    with pytest.raises(InputError, match="not a folder"):
        write_shards(SAMPLES, tmp_path / "out/theirs.tar")


def test_folders_of_shards_are_unfinished_together(tmp_path):
    with pytest.raises(KeyboardInterrupt), unfinished(tmp_path / "out"):
        write_shards(SAMPLES, tmp_path / "out/train")
        raise KeyboardInterrupt
    with unfinished(tmp_path / "out"):
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".unfinished"]
        write_shards(SAMPLES, tmp_path / "out/test")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["test"]

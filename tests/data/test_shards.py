from pathlib import Path

import numpy as np
import pytest

from tests.data.tars import image_bytes, read_by_webdataset, write_tar
from vitlight.data.index import load_index
from vitlight.data.shards import Sample, describe_index, unfinished, write_shard, write_shards
from vitlight.errors import InputError

SAMPLES = [Sample(f"d/{i:03d}", image_bytes(i), "png", i % 3) for i in range(7)]


def test_what_was_written_is_read_back(tmp_path):
    index = write_shards(SAMPLES, tmp_path / "out", samples_per_shard=3, class_names=["cat", "dog", "cow"])
    assert [Path(shard).name for shard in index.shards] == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    assert index.shard_of(np.arange(7)).tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert index.class_names == ("cat", "dog", "cow")
    for i, sample in enumerate(SAMPLES):
        data = Path(index.shards[i // 3]).read_bytes()
        assert (index.key(i), int(index.label[i])) == (sample.key, sample.label)
        assert data[int(index.offset[i]) :][: int(index.size[i])] == sample.image
    assert load_index(tmp_path / "out").digest == index.digest
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "classes.txt", "index", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar"
    ]  # fmt: skip


def test_webdataset_reads_what_was_written(tmp_path):
    index = write_shards(SAMPLES, tmp_path / "out", samples_per_shard=3)
    read = [sample for shard in index.shards for sample in read_by_webdataset(Path(shard))]
    assert [(each["__key__"], each["png"], int(each["cls"])) for each in read] == [
        (sample.key, sample.image, sample.label) for sample in SAMPLES
    ]


def test_equal_samples_give_equal_bytes(tmp_path):
    long = Sample("é" * 120 + "/" + "k" * 200, image_bytes(), "png", 0)
    one, two = (write_shards([*SAMPLES, long], tmp_path / name) for name in ("one", "two"))
    assert Path(one.shards[0]).read_bytes() == Path(two.shards[0]).read_bytes()
    assert one.key(7) == long.key


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("a.b", image_bytes(), "png", 0), "key 'a.b': a key's last component has no dot"),
        (Sample("a/", image_bytes(), "png", 0), "key 'a/'"),
        (Sample("__a__", image_bytes(), "png", 0), "key '__a__'"),
        (Sample("a", image_bytes(), "gif", 0), "sample 'a': extension 'gif' is none of bmp, jpeg, jpg"),
        (Sample("a", image_bytes(), "png", -1), "sample 'a': label '-1' is no class"),
        (Sample("a", b"no image", "png", 0), "sample 'a': its .png part .* is no image"),
        (Sample("d/001", image_bytes(), "png", 0), "key 'd/001' comes twice"),
        (Sample("a", image_bytes(), "png", 3), r"sample 'a': label 3, but .*classes\.txt names 3 classes"),
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


def test_an_index_is_described_in_one_line(tmp_path):
    index = write_shards(SAMPLES, tmp_path / "out", samples_per_shard=3)
    num_bytes = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert describe_index("train", index) == (
        f"train: 7 images of 3 classes in 3 shards, {num_bytes / 1e6:.1f} MB, digest {index.digest[:12]}: {tmp_path / 'out'}"
    )


def test_samples_are_written_as_they_come(tmp_path):
    """A shard's images are not gathered in memory: each is in the file's hands before the next is asked for."""
    alive = []

    class Image(bytes):
        def __new__(cls, data: bytes) -> "Image":
            alive.append(1)
            return super().__new__(cls, data)

        def __del__(self) -> None:
            alive.pop()

    def samples():
        for i in range(50):
            assert len(alive) <= 2
            yield Sample(f"{i:03d}", Image(image_bytes()), "png", 0)

    assert len(write_shards(samples(), tmp_path / "out", samples_per_shard=30)) == 50


def begin(folder: Path, plan: dict[str, object] | None, **options: bool) -> None:
    """A try that is cut off when it has written another shard."""
    with pytest.raises(KeyboardInterrupt), unfinished(folder, plan=plan, **options):
        (folder / "shard-000009.tar.part").write_bytes(b"half")
        write_shard(SAMPLES, folder / f"shard-{len(list(folder.glob('*.tar'))):06d}.tar")
        raise KeyboardInterrupt


def test_a_torn_try_of_the_same_plan_is_kept_and_one_of_another_refused(tmp_path):
    plan, other = {"quality": 95, "seed": 0}, {"quality": 95, "seed": 1}
    begin(tmp_path / "out", plan)
    begin(tmp_path / "out", plan)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2
    for plan_now, message in (
        (other, "shards with seed=0 were begun here, this is seed=1; repeat the settings to go on, or overwrite"),
        (None, "shards with quality=95 were begun here, this is quality=None"),
    ):
        with pytest.raises(InputError, match=message), unfinished(tmp_path / "out", plan=plan_now):
            pass
    begin(tmp_path / "out", other, overwrite=True)
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        ".unfinished", "shard-000000.tar", "shard-000009.tar.part"
    ]  # fmt: skip
    with unfinished(tmp_path / "out", plan=other):
        assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [".unfinished", "shard-000000.tar"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["shard-000000.tar"]


def test_a_torn_try_without_a_shard_gives_way_to_any_plan(tmp_path):
    with pytest.raises(KeyboardInterrupt), unfinished(tmp_path / "out", plan={"seed": 0}):
        raise KeyboardInterrupt
    with unfinished(tmp_path / "out", plan={"seed": 1}):
        assert "1" in (tmp_path / "out/.unfinished").read_text()

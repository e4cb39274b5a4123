import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.data.tars import image_bytes, read_by_webdataset, write_tar
from vitlight.data.tar import scan_shard
from vitlight.errors import InputError

IMAGE = image_bytes()


def rows(path: Path) -> list[tuple[str, bytes, int]]:
    """(key, image bytes, label) as the scan finds them."""
    scan, data = scan_shard(path), path.read_bytes()
    offsets, sizes, labels = (scan.columns[name].tolist() for name in ("offset", "size", "label"))
    images = [data[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]
    return [(key.decode(), image, label) for key, image, label in zip(scan.keys, images, labels, strict=True)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a", "dir.d/ü", "x" * 90 + "/" + "y" * 90], ids=["short", "utf8", "prefix"])
def test_names_of_every_tar_format(tmp_path, form, name):
    path = write_tar(
        tmp_path / "s.tar", [(f"{name}.png", IMAGE), (f"{name}.cls", b"3"), ("b.cls", b"4"), ("b.png", IMAGE)], form
    )
    assert rows(path) == [(name, IMAGE, 3), ("b", IMAGE, 4)]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_longer_than_a_header(tmp_path, form):
    name = "d" * 200 + "/" + "e" * 300
    path = write_tar(tmp_path / "s.tar", [(f"{name}.png", IMAGE), (f"{name}.cls", b"3")], form)
    assert rows(path) == [(name, IMAGE, 3)]


def test_keys_and_labels_are_webdatasets(tmp_path):
    members = [
        ("__meta__", b"{}"),
        ("dir.d/a.cls", b"2\n"),
        ("dir.d/a.PNG", IMAGE),
        ("dir.d/a.seg.png", b"no image, and not asked for"),
        ("README", b"no dot, no part"),
        (".hidden.png", b"no key"),
        ("b.json", json.dumps({"label": 7, "caption": "b"}).encode()),
        ("b.png", IMAGE),
    ]
    path = write_tar(tmp_path / "s.tar", members)
    assert rows(path) == [("dir.d/a", IMAGE, 2), ("b", IMAGE, 7)]
    theirs = [sample["__key__"] for sample in read_by_webdataset(path)]
    assert theirs == ["dir.d/a", "b"]


def test_folders_and_links_are_no_parts(tmp_path):
    path = tmp_path / "s.tar"
    (tmp_path / "a.png").write_bytes(IMAGE)
    (tmp_path / "a.cls").write_bytes(b"1")
    (tmp_path / "b.png").symlink_to("a.png")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path, "in", filter=lambda info: None if info.name.endswith(".tar") else info)
    assert rows(path) == [("in/a", IMAGE, 1)]


def test_the_size_of_an_image_may_lie_behind_a_long_exif_part(tmp_path):
    jpeg = image_bytes(form="jpeg")
    exif = b"\xff\xe1" + (60_000).to_bytes(2, "big") + bytes(59_998)
    long = jpeg[:2] + exif + jpeg[2:]
    assert rows(write_tar(tmp_path / "s.tar", [("a.jpg", long), ("a.cls", b"0")])) == [("a", long, 0)]


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "bmp", "ppm"])
def test_every_kind_of_image_is_told_from_noise(tmp_path, form):
    good = image_bytes(form=form)
    assert rows(write_tar(tmp_path / "s.tar", [(f"a.{form}", good), ("a.cls", b"0")]))[0][1] == good
    bad = write_tar(tmp_path / "bad.tar", [("a.cls", b"0"), (f"a.{form}", b"<html>404</html>" * 400)])
    with pytest.raises(InputError, match=rf"bad.tar: sample 'a': its .{form} part \(6400 bytes\) is no image"):
        scan_shard(bad)
    assert len(scan_shard(bad, check_images=False).keys) == 1


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", IMAGE)], "sample 'a' has no label; a sample has a part .cls"),
        ([("a.json", b"{}"), ("a.png", IMAGE)], "sample 'a' has no label: its .json part has no field 'label'"),
        ([("a.json", b"{"), ("a.png", IMAGE)], "sample 'a': its .json part can't be read"),
        ([("a.json", b'{"label": true}'), ("a.png", IMAGE)], "sample 'a' has label 'true'; a label is an integer"),
        ([("a.json", b'{"label": 1.0}'), ("a.png", IMAGE)], "sample 'a' has label '1.0'; a label is an integer"),
        ([("a.cls", b"cat"), ("a.png", IMAGE)], "sample 'a' has label 'cat'; a label is an integer"),
        ([("a.cls", b"-1"), ("a.png", IMAGE)], "sample 'a' has label '-1'; a label is an integer from 0 to 2"),
        ([("a.cls", b"2147483648"), ("a.png", IMAGE)], "sample 'a' has label '2147483648'"),
        ([("a.cls", b"1" * 65), ("a.png", IMAGE)], "sample 'a' has label '1111"),
        ([("a.cls", b""), ("a.png", IMAGE)], "sample 'a' has label ''"),
        ([("a.cls", b"1"), ("a.txt", b"hi")], r"sample 'a' has no image among its parts \(cls, txt\)"),
        ([("a.cls", b"1"), ("a.png", IMAGE), ("a.jpg", IMAGE)], r"sample 'a' has 2 images among its parts"),
        ([("a.cls", b"1"), ("a.png", b"")], "sample 'a': its image has 0 bytes"),
        ([("a.cls", b"1"), ("b.cls", b"1"), ("a.png", IMAGE)], r"sample 'a' has no image among its parts \(cls\)"),
    ],
)
def test_a_bad_sample_is_named(tmp_path, members, message):
    good = [("good.cls", b"0"), ("good.png", IMAGE)]
    path = write_tar(tmp_path / "s.tar", good + members)
    with pytest.raises(InputError, match=message) as caught:
        scan_shard(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_every_cut_is_noticed(tmp_path):
    whole = write_tar(
        tmp_path / "s.tar", [("a.cls", b"0"), ("a.png", IMAGE), ("b.cls", b"0"), ("b.png", IMAGE)]
    ).read_bytes()
    last_part = len(whole.rstrip(b"\0"))
    cut = tmp_path / "cut.tar"
    for length in range(0, last_part // 512 * 512 + 512 + 1, 128):
        cut.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut.tar: the tar is cut off"):
            scan_shard(cut)


def test_what_is_no_tar(tmp_path):
    path = tmp_path / "s.tar"
    with pytest.raises(InputError, match=r"s.tar: can't read this shard: No such file"):
        scan_shard(path)
    path.write_bytes(b"not a tar" * 200)
    with pytest.raises(InputError, match=r"s.tar: no tar header at byte 0"):
        scan_shard(path)
    path.write_bytes(b"\x1f\x8b" + b"z" * 1000)
    with pytest.raises(InputError, match=r"no tar header at byte 0 \(it is compressed; unpack it\)"):
        scan_shard(path)
    one = write_tar(path, [("a.cls", b"0"), ("a.png", IMAGE)]).read_bytes()
    path.write_bytes(one + one)
    with pytest.raises(InputError, match=r"data after the tar's end mark; were tars joined with cat"):
        scan_shard(path)
    path.write_bytes(one[:1024] + b"\1" + one[1025:])
    with pytest.raises(InputError, match=r"s.tar: no tar header at byte 1024"):
        scan_shard(path)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_a_cut_image_is_found_at_index_time(tmp_path, form):
    buffer = io.BytesIO()
    Image.effect_noise((40, 40), 90).convert("RGB").save(buffer, form)
    whole = buffer.getvalue()
    cut = whole[: len(whole) // 2]
    members = [(f"a.{form}", whole), ("a.cls", b"0"), (f"folder/b.{form}", cut), ("folder/b.cls", b"1")]
    shard = write_tar(tmp_path / "s.tar", members)
    with pytest.raises(
        InputError, match=rf"s\.tar: sample 'folder/b': .*{len(cut)} bytes\) (can't be decoded|is no image)"
    ):
        scan_shard(shard)
    assert len(scan_shard(shard, check_images=False).keys) == 2


def test_bytes_after_the_end_of_a_whole_image_are_no_damage(tmp_path):
    longer = image_bytes(form="jpeg") + b"written by a camera"
    assert rows(write_tar(tmp_path / "s.tar", [("a.jpg", longer), ("a.cls", b"0")])) == [("a", longer, 0)]

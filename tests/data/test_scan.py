import io

import numpy as np
import pytest
from PIL import Image

from tests.data.tars import image_bytes, scanned_rows, write_tar
from vitlight.data.faults import Kind
from vitlight.data.labels import LabelReader, LabelSource
from vitlight.data.scan import ScanSettings, examine_shard, scan_shard
from vitlight.errors import InputError

IMAGE = image_bytes()


def test_the_size_of_an_image_may_lie_behind_a_long_exif_part(tmp_path):
    jpeg = image_bytes(form="jpeg")
    exif = b"\xff\xe1" + (60_000).to_bytes(2, "big") + bytes(59_998)
    long = jpeg[:2] + exif + jpeg[2:]
    assert scanned_rows(write_tar(tmp_path / "s.tar", [("a.jpg", long), ("a.cls", b"0")])) == [("a", long, 0)]


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "bmp", "ppm"])
def test_every_kind_of_image_is_told_from_noise(tmp_path, form):
    good = image_bytes(form=form)
    assert scanned_rows(write_tar(tmp_path / "s.tar", [(f"a.{form}", good), ("a.cls", b"0")]))[0][1] == good
    bad = write_tar(tmp_path / "bad.tar", [("a.cls", b"0"), (f"a.{form}", b"<html>404</html>" * 400)])
    with pytest.raises(InputError, match=rf"bad.tar: sample 'a': its .{form} part \(6400 bytes\) is no image"):
        scan_shard(bad, ScanSettings())


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", IMAGE)], r"sample 'a': no label; a sample has a part .cls, .json with field 'label', or .txt"),
        (
            [("a.json", b"{}"), ("a.png", IMAGE)],
            "sample 'a': no label: its .json part has no field 'label'; set data.labels.field",
        ),
        ([("a.json", b"{"), ("a.png", IMAGE)], "sample 'a': its .json part can't be read"),
        (
            [("a.json", b'{"label": true}'), ("a.png", IMAGE)],
            "sample 'a': label 'true' is no class; a label is an integer",
        ),
        (
            [("a.json", b'{"label": 1.0}'), ("a.png", IMAGE)],
            "sample 'a': label '1.0' is no class; a label is an integer",
        ),
        (
            [("a.cls", b"cat"), ("a.png", IMAGE)],
            "sample 'a': label 'cat' is no number, and no file names the classes; set data.labels.class_file",
        ),
        (
            [("a.cls", b"-1"), ("a.png", IMAGE)],
            "sample 'a': label '-1' is no class; a label is an integer from 0 to 16777215",
        ),
        ([("a.cls", b"16777216"), ("a.png", IMAGE)], "sample 'a': label '16777216'"),
        ([("a.cls", b"1" * 65), ("a.png", IMAGE)], "sample 'a': label '1111"),
        ([("a.cls", b""), ("a.png", IMAGE)], "sample 'a': label '' is no number"),
        ([("a.cls", b"1"), ("a.txt", b"hi")], r"sample 'a': no image among its parts \(cls, txt\)"),
        (
            [("a.cls", b"1"), ("a.png", IMAGE), ("a.jpg", IMAGE)],
            r"sample 'a': 2 images among its parts \(cls, jpg, png\); set data.image_part to the one to take: jpg, png",
        ),
        ([("a.cls", b"1"), ("a.png", b"")], "sample 'a': its image has 0 bytes"),
        (
            [("a.cls", b"1"), ("b.cls", b"1"), ("b.png", IMAGE), ("a.png", IMAGE)],
            r"sample 'a': its parts are not adjacent \(cls, and after other samples png\); write the tar sorted by name",
        ),
        ([("a.cls", b"1"), ("a.png", IMAGE)] * 2, "sample 'a': key 'a' comes twice in this shard"),
        (
            [("a.cls", b"1"), ("a.left.jpg", IMAGE)],
            r"no image among its parts .*set data.image_part to the one to take: left.jpg",
        ),
    ],
)
def test_a_bad_sample_is_named(tmp_path, members, message):
    good = [("good.cls", b"0"), ("good.png", IMAGE)]
    path = write_tar(tmp_path / "s.tar", good + members)
    with pytest.raises(InputError, match=message) as caught:
        scan_shard(path, ScanSettings())
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


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
        scan_shard(shard, ScanSettings())


def test_bytes_after_the_end_of_a_whole_image_are_no_damage(tmp_path):
    longer = image_bytes(form="jpeg") + b"written by a camera"
    assert scanned_rows(write_tar(tmp_path / "s.tar", [("a.jpg", longer), ("a.cls", b"0")])) == [("a", longer, 0)]


def test_the_part_to_take_where_samples_have_several_images(tmp_path):
    left, right = image_bytes(1), image_bytes(2)
    path = write_tar(tmp_path / "s.tar", [("a.Left.png", left), ("a.png", right), ("a.cls", b"0")])
    assert scanned_rows(path, ScanSettings(image_part="left.png")) == [("a", left, 0)]
    assert scanned_rows(path, ScanSettings(image_part="png")) == [("a", right, 0)]
    with pytest.raises(InputError, match=r"no image among its parts .*; data.image_part=jpg names the part to take"):
        scan_shard(path, ScanSettings(image_part="jpg"))


def test_whole_decoding_finds_what_the_ends_of_an_image_hide(tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "png")
    damaged = bytearray(buffer.getvalue())
    damaged[2000:2100] = bytes(100)
    path = write_tar(
        tmp_path / "s.tar", [("a.png", bytes(damaged)), ("a.cls", b"0"), ("b.png", IMAGE), ("b.cls", b"0")]
    )
    assert scan_shard(path, ScanSettings()).keys == [b"a", b"b"]
    scan, faults = examine_shard(path, ScanSettings(decode=True))
    assert scan.keys == [b"b"]
    assert [(fault.kind, fault.key) for fault in faults] == [(Kind.BAD_IMAGE, "a")]


def test_everything_wrong_is_found_in_the_order_of_the_tar(tmp_path):
    members = [
        ("a.cls", b"x"), ("a.png", IMAGE),
        ("b.cls", b"1"),
        ("c.png", IMAGE), ("c.cls", b"5"),
        ("d.png", b""), ("d.cls", b"5"),
        ("b.png", IMAGE),
        ("c.png", IMAGE), ("c.cls", b"6"),
        ("e.png", IMAGE), ("e.cls", b"7"),
    ]  # fmt: skip
    path = write_tar(tmp_path / "s.tar", members)
    path.write_bytes(path.read_bytes() + b"x")
    scan, faults = examine_shard(path, ScanSettings(), "named")
    assert [(fault.kind, fault.key) for fault in faults] == [
        (Kind.BAD_LABEL, "a"),
        (Kind.SPLIT_SAMPLE, "b"),
        (Kind.EMPTY_IMAGE, "d"),
        (Kind.DUPLICATE_KEY, "c"),
        (Kind.TRAILING_DATA, None),
    ]
    assert {fault.shard for fault in faults} == {"named"}
    assert (scan.keys, scan.columns["label"].tolist()) == ([b"c", b"e"], [5, 7])


def test_the_labels_of_multi_label_samples(tmp_path):
    members = []
    for key, labels in [("a", b"3"), ("b", b"1 4 1"), ("c", b"0,2,9"), ("d", b"7")]:
        members += [(f"{key}.cls", labels), (f"{key}.png", IMAGE)]
    path = write_tar(tmp_path / "s.tar", members)
    scan = scan_shard(path, ScanSettings(LabelReader(LabelSource(multi=True))))
    assert scan.labels() == [(3,), (1, 4), (0, 2, 9), (7,)]
    assert scan.columns["label"].tolist() == [3, 1, 0, 7]
    assert scan.columns["extra_row"].tolist() == [1, 2, 2]
    assert scan.columns["extra_label"].dtype == np.int32

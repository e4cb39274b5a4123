import json
import subprocess
import tarfile

import pytest

from tests.data.tars import image_bytes, read_by_webdataset, scanned_rows, write_tar
from vitlight.data.scan import ScanSettings, scan_shard
from vitlight.errors import InputError

IMAGE = image_bytes()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a", "dir.d/ü", "x" * 90 + "/" + "y" * 90], ids=["short", "utf8", "prefix"])
def test_names_of_every_tar_format(tmp_path, form, name):
    path = write_tar(
        tmp_path / "s.tar", [(f"{name}.png", IMAGE), (f"{name}.cls", b"3"), ("b.cls", b"4"), ("b.png", IMAGE)], form
    )
    assert scanned_rows(path) == [(name, IMAGE, 3), ("b", IMAGE, 4)]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_longer_than_a_header(tmp_path, form):
    name = "d" * 200 + "/" + "e" * 300
    path = write_tar(tmp_path / "s.tar", [(f"{name}.png", IMAGE), (f"{name}.cls", b"3")], form)
    assert scanned_rows(path) == [(name, IMAGE, 3)]


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
    assert scanned_rows(path) == [("dir.d/a", IMAGE, 2), ("b", IMAGE, 7)]
    theirs = [sample["__key__"] for sample in read_by_webdataset(path)]
    assert theirs == ["dir.d/a", "b"]


def test_folders_and_links_are_no_parts(tmp_path):
    path = tmp_path / "s.tar"
    (tmp_path / "a.png").write_bytes(IMAGE)
    (tmp_path / "a.cls").write_bytes(b"1")
    (tmp_path / "b.png").symlink_to("a.png")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path, "in", filter=lambda info: None if info.name.endswith(".tar") else info)
    assert scanned_rows(path) == [("in/a", IMAGE, 1)]


def test_every_cut_is_noticed(tmp_path):
    whole = write_tar(
        tmp_path / "s.tar", [("a.cls", b"0"), ("a.png", IMAGE), ("b.cls", b"0"), ("b.png", IMAGE)]
    ).read_bytes()
    last_part = len(whole.rstrip(b"\0"))
    cut = tmp_path / "cut.tar"
    for length in range(0, last_part // 512 * 512 + 512 + 1, 128):
        cut.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut.tar: the tar is cut off"):
            scan_shard(cut, ScanSettings())


def test_what_is_no_tar(tmp_path):
    path = tmp_path / "s.tar"
    with pytest.raises(InputError, match=r"s.tar: can't read this shard: No such file"):
        scan_shard(path, ScanSettings())
    path.write_bytes(b"not a tar" * 200)
    with pytest.raises(InputError, match=r"s.tar: no tar header at byte 0"):
        scan_shard(path, ScanSettings())
    path.write_bytes(b"\x1f\x8b" + b"z" * 1000)
    with pytest.raises(InputError, match=r"no tar header at byte 0 \(it is compressed; unpack it\)"):
        scan_shard(path, ScanSettings())
    one = write_tar(path, [("a.cls", b"0"), ("a.png", IMAGE)]).read_bytes()
    path.write_bytes(one + one)
    with pytest.raises(InputError, match=r"data after the tar's end mark; were tars joined with cat"):
        scan_shard(path, ScanSettings())
    path.write_bytes(one[:1024] + b"\1" + one[1025:])
    with pytest.raises(InputError, match=r"s.tar: no tar header at byte 1024"):
        scan_shard(path, ScanSettings())


@pytest.mark.parametrize("form", ["gnu", "ustar", "pax"])
def test_shards_written_by_the_tar_command(tmp_path, form):
    keys = ["d/a.b/cat", "ö", "x" * 60 + "/" + "y" * 80]
    if form != "ustar":
        keys.append("z" * 120 + "/" + "w" * 230)
    for i, key in enumerate(keys):
        (tmp_path / "in" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"in/{key}.cls").write_text(f"{i}\n")
        (tmp_path / f"in/{key}.jpg").write_bytes(image_bytes(i, "jpeg"))
    path = tmp_path / "s.tar"
    subprocess.run(["tar", f"--format={form}", "--sort=name", "-cf", path, "-C", tmp_path / "in", "."], check=True)
    expected = [(f"./{key}", image_bytes(i, "jpeg"), i) for i, key in enumerate(keys)]
    assert sorted(scanned_rows(path)) == sorted(expected)
    assert [row[0] for row in scanned_rows(path)] == [sample["__key__"] for sample in read_by_webdataset(path)]


def test_shards_written_by_webdataset(tmp_path):
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "s.tar")) as writer:
        for i in range(3):
            writer.write({"__key__": f"train/{i:06d}", "jpg": image_bytes(i, "jpeg"), "cls": i, "json": {"label": 9}})
    expected = [(f"train/{i:06d}", image_bytes(i, "jpeg"), i) for i in range(3)]
    assert scanned_rows(tmp_path / "s.tar") == expected

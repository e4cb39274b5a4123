import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.tars import image_bytes, write_tar
from vitlight.cli import main
from vitlight.data.cache import ShardCache
from vitlight.data.faults import Kind
from vitlight.data.fetch import FetchPolicy
from vitlight.data.index import load_index
from vitlight.data.labels import LabelSource
from vitlight.data.shard_set import ShardSet
from vitlight.data.sources import resolve_shards
from vitlight.data.verify import verify


def found(folder, **settings):
    """(shard's name, key, kind) of everything that is wrong with a folder of shards, sorted."""
    sets = {name: settings.pop(name) for name in ("index_dir", "labels", "image_part") if name in settings}
    reports = verify(ShardSet(resolve_shards(folder), **sets), folder=Path(folder), **settings)
    faults = [fault for report in reports for fault in report.faults]
    assert all("\n" not in str(fault) for fault in faults)
    return sorted((Path(fault.shard).name, fault.key or "", str(fault.kind)) for fault in faults)


def write_by_webdataset(folder: Path, shards: dict[str, list[tuple[str, bytes, int]]]) -> None:
    import webdataset

    for name, samples in shards.items():
        with webdataset.TarWriter(str(folder / name)) as writer:
            for key, image, label in samples:
                writer.write({"__key__": key, "jpg": image, "cls": label})


def write_like_img2dataset(folder: Path, shards: dict[str, list[tuple[str, bytes, int]]]) -> None:
    """Its layout: image, caption and metadata of each sample, and the class in a field of the metadata."""
    for name, samples in shards.items():
        members = []
        for key, image, label in samples:
            described = {"key": key, "caption": "a thing", "status": "success", "width": 32, "label": label}
            members += [
                (f"{key}.jpg", image),
                (f"{key}.txt", b"a thing"),
                (f"{key}.json", json.dumps(described).encode()),
            ]
        write_tar(folder / name, members)


def noise_jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "jpeg")
    return buffer.getvalue()


def members_of(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


@pytest.mark.parametrize("writer", [write_by_webdataset, write_like_img2dataset])
def test_damage_of_six_kinds_is_named_and_nothing_else(tmp_path, writer):
    """10 of the 160 samples in the first four shards are damaged, two of each kind, and the last two shards are cut off."""
    label_part = "cls" if writer is write_by_webdataset else "json"
    keys = [f"{i:09d}" for i in range(240)]
    samples = [(key, noise_jpeg(i), i % 10) for i, key in enumerate(keys)]
    names = [f"{s:05d}.tar" for s in range(6)]
    writer(tmp_path, {name: samples[s * 40 : (s + 1) * 40] for s, name in enumerate(names)})
    assert found(tmp_path, num_classes=10) == []

    victims = [keys[i] for i in np.random.default_rng(5).choice(160, 10, replace=False)]
    undecodable, out_of_range, no_label, split, duplicate = (victims[2 * i : 2 * i + 2] for i in range(5))
    shards = {name: members_of(tmp_path / name) for name in names[:4]}
    for s, name in enumerate(names[:4]):
        members, last = [], []
        for member, data in shards[name]:
            key, part = member.split(".")
            if key in undecodable and part == "jpg":
                data = data[: len(data) // 2]
            if key in out_of_range and part == label_part:
                data = b"10" if part == "cls" else b'{"label": 10}'
            if key in no_label and part == "json":
                data = b'{"caption": "nothing"}'
            if key in split and part == label_part:
                last.append((member, data))
            elif not (key in no_label and part == "cls"):
                members.append((member, data))
        last += [pair for pair in shards[names[s - 1 if s else 3]] if pair[0].split(".")[0] in duplicate]
        write_tar(tmp_path / name, members + last)
    for name in names[4:]:
        data = (tmp_path / name).read_bytes().rstrip(b"\0")
        (tmp_path / name).write_bytes(data[: (len(data) - 1) // 512 * 512])

    def place(key, kind):
        number = int(key) // 40
        return names[max(number, (number + 1) % 4) if kind == "duplicate key" else number], key, kind

    expected = [place(key, "undecodable image") for key in undecodable]
    expected += [place(key, "label out of range") for key in out_of_range]
    expected += [place(key, "no label") for key in no_label]
    expected += [place(key, "split sample") for key in split]
    expected += [place(key, "duplicate key") for key in duplicate]
    expected += [(name, "", "truncated tar") for name in names[4:]]
    assert found(tmp_path, num_classes=10) == sorted(expected)


def test_two_processes_find_the_same(tmp_path):
    for i in range(5):
        write_tar(tmp_path / f"{i}.tar", [(f"k{i // 2}.cls", b"%d" % i), (f"k{i // 2}.png", image_bytes())])
    expected = [("1.tar", "k0", "duplicate key"), ("3.tar", "k1", "label out of range")]
    expected += [("4.tar", "k2", "label out of range")]
    for num_processes in (1, 2):
        assert found(tmp_path, num_classes=3, decode=False, num_processes=num_processes) == expected


def test_keys_that_differ_with_equal_hashes_are_no_duplicates(tmp_path, monkeypatch):
    for module in ("scan", "verify"):
        monkeypatch.setattr(f"vitlight.data.{module}.key_hash", len)
    for i, keys in enumerate([["a", "b"], ["c", "b"], ["b", "d"]]):
        write_tar(tmp_path / f"{i}.tar", [(f"{key}.{part}", data) for key in keys for part, data in PARTS])
    assert found(tmp_path) == [("1.tar", "b", "duplicate key"), ("2.tar", "b", "duplicate key")]


PARTS = [("cls", b"1"), ("png", image_bytes())]


def write_parts(path: Path, *keys: str) -> Path:
    return write_tar(path, [(f"{key}.{part}", data) for key in keys for part, data in PARTS])


def test_what_is_no_shard(tmp_path):
    write_parts(tmp_path / "a.tar", "a")
    (tmp_path / "b.tar").write_bytes(b"\x1f\x8b" + bytes(1000))
    (tmp_path / "c.tar").mkdir()
    write_parts(tmp_path / "d.tar", "d")
    (tmp_path / "d.tar").write_bytes((tmp_path / "d.tar").read_bytes() + b"tail")
    expected = [("b.tar", "", "damaged tar"), ("c.tar", "", "unreadable shard"), ("d.tar", "", "trailing data")]
    assert found(tmp_path) == expected
    reports = verify(ShardSet((str(tmp_path / "a.tar"), str(tmp_path / "none.tar"))))
    assert [(len(report.faults), report.num_samples) for report in reports] == [(0, 1), (1, 0)]


def test_shards_that_are_not_as_the_index_has_them(tmp_path):
    for i in range(4):
        write_parts(tmp_path / f"{i}.tar", f"{i}-x", f"{i}-y")
    load_index(tmp_path)
    assert found(tmp_path) == []
    write_parts(tmp_path / "0.tar", "0-x", "0-y", "0-z", "0-zz", "0-zzz", "0-zzzz")
    os.utime(tmp_path / "1.tar", ns=(0, 0))
    times = (tmp_path / "2.tar").stat()
    write_tar(
        tmp_path / "2.tar",
        [("2-x.cls", b"0"), ("2-x.png", image_bytes()), ("2-z.cls", b"1"), ("2-z.png", image_bytes())],
    )
    os.utime(tmp_path / "2.tar", ns=(times.st_atime_ns, times.st_mtime_ns))
    (tmp_path / "3.tar").unlink()
    assert found(tmp_path) == [
        ("0.tar", "", "changed shard"),
        ("1.tar", "", "changed shard"),
        ("2.tar", "2-x", "changed sample"),
        ("2.tar", "2-y", "changed sample"),
        ("2.tar", "2-z", "changed sample"),
        ("3.tar", "", "missing shard"),
    ]


def test_an_index_with_other_settings_has_other_rows(tmp_path):
    write_tar(tmp_path / "s.tar", [("a.json", b'{"label": 1, "other": 2}'), ("a.png", image_bytes())])
    load_index(tmp_path)
    assert found(tmp_path, labels=LabelSource("other")) == []
    assert found(tmp_path, index_dir=tmp_path / "none") == []


def test_remote_shards(tmp_path, monkeypatch):
    monkeypatch.setenv("VITLIGHT_CACHE", str(tmp_path / "caches"))
    path = write_parts(tmp_path / "s.tar", "a", "b")
    url = f"pipe:cat {path}"
    load_index([url], cache=ShardCache(tmp_path / "first", None))
    shards = ShardSet((url, f"pipe:cat {tmp_path}/none.tar"))
    cache = ShardCache(tmp_path / "2", None, FetchPolicy(num_attempts=1))
    kinds = [fault.kind for report in verify(shards, cache=cache) for fault in report.faults]
    assert kinds == [Kind.UNREADABLE_SHARD]
    write_parts(path, "a", "c")
    faults = [f for report in verify(ShardSet((url,)), cache=ShardCache(tmp_path / "3", None)) for f in report.faults]
    assert [fault.kind for fault in faults] == [Kind.CHANGED_SHARD]
    assert "but the index has" in faults[0].detail


def test_the_command_prints_a_table_and_exits_with_1(tmp_path, capsys):
    write_parts(tmp_path / "0.tar", "a", "b")
    assert main(["data", "verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == ["1 shards, 2 sound samples, 0.0 MB read; nothing wrong"]
    assert main(["data", "verify", str(tmp_path), "--num-classes", "1", "--show", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["problem", "shard", "key", "detail"]
    assert lines[1] == f"label out of range  {tmp_path}/0.tar  a    label 1 is not in 0 to 0; see num_classes"
    assert lines[-1] == (
        "1 shards, 0 sound samples, 0.0 MB read; 2 problems in 1 shards: 2 label out of range (--json lists all)"
    )
    assert main(["data", "verify", str(tmp_path), "--num-classes", "0"]) == 2
    assert main(["data", "verify", str(tmp_path / "none")]) == 1, "a shard that is missing"
    assert main(["data", "verify", str(tmp_path / "*.zip")]) == 2


def test_the_command_lists_all_as_json(tmp_path, capsys):
    write_parts(tmp_path / "0.tar", "a", "b")
    assert main(["data", "verify", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    assert main(["data", "verify", str(tmp_path), "--json", "--label-part", "txt", "--no-decode"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert [(row["kind"], row["key"]) for row in printed["problems"]] == [("no label", "a"), ("no label", "b")]
    assert Counter(row["kind"] for row in printed["problems"]) == printed["num_of_kind"]
    assert (printed["num_shards"], printed["num_bad_shards"], printed["num_problems"]) == (1, 1, 2)


def test_index_and_verify_read_labels_alike(tmp_path, capsys):
    members = [("a.json", b'{"meta": {"tags": ["dog", "cat"]}}'), ("a.left.png", image_bytes()), ("a.png", b"x")]
    write_tar(tmp_path / "s.tar", members)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    settings = [
        "--label-field=meta.tags",
        "--multi-label",
        f"--class-file={tmp_path}/names.txt",
        "--image-part=left.png",
    ]
    assert main(["data", "index", str(tmp_path), *settings]) == 0
    assert "1 images of 2 classes in 1 shards" in capsys.readouterr().out
    assert main(["data", "verify", str(tmp_path), *settings]) == 0
    assert main(["data", "verify", str(tmp_path)]) == 1


def test_every_kind_is_explained():
    page = (Path(__file__).parents[2] / "docs/shards.md").read_text()
    assert [kind for kind in Kind if kind not in page] == []

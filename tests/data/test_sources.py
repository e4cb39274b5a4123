import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from vitlight.data.sources import (
    UNFINISHED_FILE,
    default_cache_dir,
    is_remote,
    local_path,
    redact,
    resolve_shards,
    shard_name,
)
from vitlight.errors import InputError


def touch(folder: Path, *names: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [str(folder / name) for name in names]


@pytest.fixture
def bucket():
    """A folder of fsspec's filesystem in memory, which lists as a bucket does."""
    memory = fsspec.filesystem("memory")
    for name in ("b-1.tar", "b-0.tar", "note.md", "sub/c-0.tar"):
        memory.pipe(f"/bucket/train/{name}", b"x")
    yield "memory://bucket/train"
    memory.rm("/bucket", recursive=True)


def test_local_sources(tmp_path):
    shards = touch(tmp_path / "x", "s-0.tar", "s-1.tar", "s-2.tar")
    other = touch(tmp_path / "y", "t-0.tar", "t-1.tar")
    (tmp_path / "x/readme.md").touch()
    for source in (tmp_path / "x", f"{tmp_path}/x/", f"{tmp_path}/x/s-{{0..2}}.tar", f"{tmp_path}/x/s-*.tar"):
        assert resolve_shards(source) == tuple(shards)
    assert resolve_shards(f"{tmp_path}/x/s-{{2,0}}.tar") == (shards[2], shards[0]), "braces keep their order"
    assert resolve_shards(f"{tmp_path}/{{y,x}}/*.tar") == (*other, *shards)
    assert resolve_shards(f"{tmp_path}/{{y,x}}") == (*other, *shards)
    assert resolve_shards(f"{tmp_path}/*/*.tar") == (*shards, *other)
    assert resolve_shards([tmp_path / "y", shards[1]]) == (*other, shards[1])
    assert resolve_shards(f"{tmp_path}/y::{shards[1]}") == (*other, shards[1])
    assert resolve_shards(f"{tmp_path}/later-{{0..1}}.tar") == (f"{tmp_path}/later-0.tar", f"{tmp_path}/later-1.tar")
    odd = touch(tmp_path, "a::b.tar", "c{0..1}.tar", "d[1].tar")
    for shard in odd:
        assert resolve_shards(shard) == (shard,), "a file that exists is meant literally"


def test_file_urls(tmp_path):
    (shard,) = touch(tmp_path / "a b", "s.tar")
    quoted = shard.replace(" ", "%20")
    for url in (f"file:{quoted}", f"file://{quoted}", f"file://localhost{quoted}", f"file://{quoted[:-5]}*.tar"):
        assert resolve_shards(url) == (shard,)
    assert not is_remote(f"file://{quoted}")
    assert local_path(f"file://{quoted}") == Path(shard)
    assert local_path("file:x/y.tar") == Path("x/y.tar")
    assert local_path("100%20.tar") == Path("100%20.tar"), "only URLs have escapes"


def test_a_list_in_a_file(tmp_path):
    shards = touch(tmp_path / "x", "s-0.tar", "s-1.tar")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{tmp_path}/x/s-{{1..0}}.tar\n\n  https://host/{{a,b}}.tar\n")
    expected = (shards[1], shards[0], "https://host/a.tar", "https://host/b.tar")
    assert resolve_shards(listed) == resolve_shards(f"file:{listed}") == expected
    listed.write_text(f"{listed}\n")
    with pytest.raises(InputError, match=r"list.txt: a list of shards names another list"):
        resolve_shards(listed)
    listed.write_bytes(b"\xff\n")
    with pytest.raises(InputError, match=r"list.txt: can't read this list of shards: not UTF-8 text"):
        resolve_shards(listed)


def test_remote_sources(bucket):
    assert resolve_shards("https://host/x-{00..02}.tar?v=1") == tuple(
        f"https://host/x-{i:02}.tar?v=1" for i in range(3)
    )
    assert resolve_shards("s3://bucket/x-{0..1}.tar") == ("s3://bucket/x-0.tar", "s3://bucket/x-1.tar")
    assert resolve_shards("pipe:cat /data/x-{0..1}.tar | unpack") == (
        "pipe:cat /data/x-0.tar | unpack",
        "pipe:cat /data/x-1.tar | unpack",
    )
    assert resolve_shards("https://h/a.tar::pipe:cat b.tar") == ("https://h/a.tar", "pipe:cat b.tar")
    both = ("memory:///bucket/train/b-0.tar", "memory:///bucket/train/b-1.tar")
    assert resolve_shards(bucket) == resolve_shards(f"{bucket}/") == resolve_shards(f"{bucket}/b-*.tar") == both
    assert resolve_shards(f"{bucket}/{{sub/*,b-1}}.tar") == ("memory:///bucket/train/sub/c-0.tar", f"{bucket}/b-1.tar")
    assert resolve_shards(f"{bucket}/note.md") == (f"{bucket}/note.md",)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "no shard was given"),
        ("x-{0..3.tar", "x-{0..3.tar: the braces of this pattern don't match"),
        ("pipe:curl -u me:word https://h/x-{0.tar", "pipe:curl ... x-{0.tar: the braces of this pattern don't match"),
        ("none/*.tar", "none/*.tar: no file matches this pattern"),
        ("none/list.txt", "none/list.txt: can't read this list of shards: No such file or directory"),
        (["x.tar", "file:x.tar"], "x.tar: this shard is named twice; name each shard once"),
        (
            "https://me:word@h/*.tar?sig=1",
            "https://h/*.tar: http can't list shards; name them with braces ({000000..000012}) or in a .txt",
        ),
        (
            "https://h/train/",
            "https://h/train/: http can't list shards; name them with braces ({000000..000012}) or in a .txt",
        ),
        ("memory://none/*.tar", "memory://none/*.tar: no file matches this pattern"),
        ("hdsf://me:word@h/x", "hdsf://h/x: can't read from here: Protocol not known: hdsf"),
    ],
)
def test_a_source_that_names_nothing(source, message):
    with pytest.raises(InputError) as error:
        resolve_shards(source)
    assert str(error.value) == message


def test_an_empty_remote_folder(bucket):
    fsspec.filesystem("memory").pipe("/bucket/notes/a.md", b"x")
    with pytest.raises(InputError, match=r"bucket/notes: no \*.tar in this folder"):
        resolve_shards("memory://bucket/notes")


def test_shards_whose_writing_was_cut_off(tmp_path):
    touch(tmp_path, "s-0.tar", UNFINISHED_FILE)
    for source in (tmp_path, tmp_path / "s-0.tar", [f"{tmp_path}/s-{{0..0}}.tar"], f"file://{tmp_path}"):
        with pytest.raises(InputError, match="the writing of these shards was cut off; write them again"):
            resolve_shards(source)


def test_a_missing_filesystem_names_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=r"^s3://b/x: reading from here needs another package; pip install s3fs$"):
        resolve_shards("s3://b/x")


@pytest.mark.parametrize(
    ("shard", "remote", "name"),
    [
        ("/data/x-0.tar", False, "x-0.tar"),
        ("x-0.tar", False, "x-0.tar"),
        ("file:///data/x-0.tar", False, "x-0.tar"),
        ("https://me:word@host/a/x-0.tar?sig=secret#f", True, "x-0.tar"),
        ("s3://bucket/a/x-0.tar", True, "x-0.tar"),
        ("pipe:aws s3 cp s3://b/x-0.tar -", True, "pipe:aws ... x-0.tar"),
        ("pipe:KEY=word curl -u me:word 'https://me:word@h/x-0.tar?sig=secret' | cat", True, "pipe:curl ... x-0.tar"),
        ("pipe:./produce 3", True, "pipe:./produce"),
    ],
)
def test_remote_or_not_and_a_name_with_no_secret(shard, remote, name):
    assert (is_remote(shard), shard_name(shard)) == (remote, name)


def test_redacted():
    text = "GET https://me:word@h:80/a/x.tar?sig=1#f failed; see 's3://k@b/y' and http://h"
    assert redact(text) == "GET https://h:80/a/x.tar failed; see 's3://b/y' and http://h"


def test_the_default_folder_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VITLIGHT_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("VITLIGHT_CACHE")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_cache_dir() == Path("/home/me/.cache/vitlight")


def test_local_sources_import_nothing_heavy(tmp_path):
    touch(tmp_path, "a.tar")
    code = (
        f"import sys; from vitlight.data.sources import resolve_shards; resolve_shards({str(tmp_path)!r})\n"
        "print(sorted({'fsspec', 'requests', 'urllib3', 'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

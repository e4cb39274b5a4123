"""The folder of checkpoints: whole or passed over, as files and as folders."""

import json

import pytest

from vitlight.training.checkpoint import (
    beside_checkpoint,
    best_step,
    checkpoint_path,
    checkpoint_step,
    commit_checkpoint,
    drop_checkpoints,
    keep_as_best,
    newest_checkpoint,
    remove_leftovers,
    write_atomically,
)

KINDS = ["file", "folder"]


def save(folder, step, kind):
    """A checkpoint made by hand: bytes in a file, or the shards of two ranks in a folder."""
    path = checkpoint_path(folder, step)
    beside = beside_checkpoint(path)
    if kind == "file":
        beside.write_bytes(f"state at {step}".encode() * 100)
    else:
        (beside / "inner").mkdir(parents=True)
        for name in ("__0_0.distcp", "inner/__1_0.distcp", ".metadata"):
            (beside / name).write_bytes(f"{name} at {step}".encode() * 100)
    commit_checkpoint(beside, path)
    return path


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(tmp_path, kind):
    for step in (10, 20, 30):
        save(tmp_path, step, kind)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def both(*steps):
    return sorted(f"step-{step:09d}.{end}" for step in steps for end in ("ckpt", "digest"))


def test_the_newest_by_step_is_found_whenever_it_was_written(folder, kind):
    assert newest_checkpoint(folder) == (30, folder / "step-000000030.ckpt")
    save(folder, 5, kind)
    assert newest_checkpoint(folder) == (30, folder / "step-000000030.ckpt")
    assert checkpoint_step(folder / "step-000000030.ckpt") == 30


def test_the_newest_and_those_to_keep_are_kept_and_nothing_else(folder, kind):
    drop_checkpoints(folder, newest=30, count=2, kept=())
    assert names(folder) == both(20, 30)
    save(folder, 40, kind)
    drop_checkpoints(folder, newest=40, count=1, kept={20})
    assert names(folder) == both(20, 40)


def test_what_lies_beyond_the_newest_never_takes_its_place(folder):
    drop_checkpoints(folder, newest=20, count=1, kept=())
    assert names(folder) == both(20)


@pytest.mark.parametrize("damage", ["truncate", "flip", "lose", "add", "no digest", "empty digest"])
def test_a_torn_checkpoint_is_passed_over_and_named_once(folder, kind, damage, capsys):
    path = checkpoint_path(folder, 30)
    data = path if kind == "file" else path / "inner" / "__1_0.distcp"
    if damage == "truncate":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "flip":
        data.write_bytes(b"X" + data.read_bytes()[1:])
    elif damage == "lose":
        data.unlink() if kind == "folder" else data.write_bytes(b"")
    elif damage == "add":
        more = path / "__2_0.distcp" if kind == "folder" else path
        with more.open("ab") as file:
            file.write(b"of another attempt")
    elif damage == "no digest":
        path.with_suffix(".digest").unlink()
    else:
        path.with_suffix(".digest").write_text("")
    assert newest_checkpoint(folder) == newest_checkpoint(folder) == (20, checkpoint_path(folder, 20))
    said = capsys.readouterr().err
    assert said.count(f"{path} is not whole and is passed over") == 1


def test_an_empty_folder_with_an_empty_digest_is_not_whole(tmp_path):
    checkpoint_path(tmp_path, 10).mkdir()
    checkpoint_path(tmp_path, 10).with_suffix(".digest").write_text("")
    assert newest_checkpoint(tmp_path) is None


def test_a_checkpoint_takes_the_place_of_a_torn_one_of_either_kind(tmp_path):
    for before in KINDS:
        for after in KINDS:
            path = save(tmp_path, 10, before)
            path.with_suffix(".digest").write_text("torn")
            assert newest_checkpoint(tmp_path) is None
            assert newest_checkpoint(tmp_path) is None
            save(tmp_path, 10, after)
            assert newest_checkpoint(tmp_path) == (10, path)
            assert path.is_dir() == (after == "folder")
    assert names(tmp_path) == both(10)


def test_leftovers_of_a_kill_are_no_checkpoint_and_are_removed(folder, kind):
    before = names(folder)
    beside = beside_checkpoint(checkpoint_path(folder, 40))
    beside.write_bytes(b"half") if kind == "file" else beside.mkdir()
    (folder / "step-000000040.digest").write_text("0" * 32)
    (folder / ".best.json.17.tmp").write_text("{")
    assert newest_checkpoint(folder) == (30, checkpoint_path(folder, 30))
    remove_leftovers(folder)
    assert names(folder) == before


def test_the_best_outlives_the_checkpoint_it_names(folder, kind):
    assert best_step(folder) is None
    for step, value in ((10, 0.5), (20, 0.625)):
        keep_as_best(checkpoint_path(folder, step), value)
        assert best_step(folder) == step
    drop_checkpoints(folder, newest=30, count=1, kept=())
    assert names(folder) == sorted([*both(30), "best.ckpt", "best.digest", "best.json"])
    assert json.loads((folder / "best.json").read_text()) == {"step": 20, "val/top1": 0.625}
    (folder / "best.ckpt").rename(checkpoint_path(folder, 20))  # whole, under its digest
    (folder / "best.digest").rename(checkpoint_path(folder, 20).with_suffix(".digest"))
    checkpoint_path(folder, 30).with_suffix(".digest").unlink()
    assert newest_checkpoint(folder) == (20, checkpoint_path(folder, 20))


def test_the_best_is_copied_where_a_file_has_one_name_only(folder, monkeypatch):
    def refuse(source, target):
        raise OSError(1, "no second names here")

    monkeypatch.setattr("os.link", refuse)
    keep_as_best(checkpoint_path(folder, 20), 0.5)
    drop_checkpoints(folder, newest=30, count=1, kept=())
    assert best_step(folder) == 20
    assert (folder / "best.ckpt").exists()


def test_atomic_text_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, "one")
    write_atomically(path, "two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]

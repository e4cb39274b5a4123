import pytest

from vitlight.training.checkpoint import newest_checkpoint, save_checkpoint, write_atomically


class FakeTrainer:
    """Saves bytes where a Trainer saves its state."""

    is_global_zero = True

    def save_checkpoint(self, path):
        path.write_bytes(f"state for {path.name}".encode() * 100)


@pytest.fixture
def folder(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(FakeTrainer(), tmp_path, step)
    return tmp_path


def test_the_newest_two_are_kept_and_nothing_else(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-000000020.ckpt",
        "step-000000020.digest",
        "step-000000030.ckpt",
        "step-000000030.digest",
    ]
    assert newest_checkpoint(folder) == (30, folder / "step-000000030.ckpt")


@pytest.mark.parametrize("damage", ["truncate", "flip", "no digest", "empty digest"])
def test_a_torn_checkpoint_is_passed_over(folder, damage):
    path = folder / "step-000000030.ckpt"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "flip":
        path.write_bytes(b"X" + path.read_bytes()[1:])
    elif damage == "no digest":
        path.with_suffix(".digest").unlink()
    else:
        path.with_suffix(".digest").write_text("")
    assert newest_checkpoint(folder) == (20, folder / "step-000000020.ckpt")


def test_leftovers_of_a_kill_are_no_checkpoint(tmp_path):
    (tmp_path / ".step-000000040.ckpt.tmp").write_bytes(b"half")
    (tmp_path / "step-000000040.digest").write_text("0" * 32)
    assert newest_checkpoint(tmp_path) is None


def test_atomic_text_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, "one")
    write_atomically(path, "two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]

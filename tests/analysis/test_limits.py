"""What can't be concluded is said where it holds, and only there."""

from pathlib import Path

import pytest

from tests.analysis.fake_runs import result, write_grid, write_run
from vitlight.analysis import load_runs, summarise
from vitlight.analysis.limits import state_limits


def limits_of(root: Path) -> str:
    runs = load_runs(root)
    return "\n".join(state_limits(runs, summarise(runs)))


def test_a_full_grid_has_no_holes_and_no_single_seed(tmp_path: Path) -> None:
    text = limits_of(write_grid(tmp_path, rungs=(1, 2), sizes=(500, 2000)))
    assert "Anything outside what was run: 500 to 2k training images and 50k to 200k parameters" in text
    assert "no run" not in text and "one seed each" not in text and "diverged" not in text
    assert "data sizes differ in samples seen, 4k to 16k" in text, "fake runs see each image eight times"
    assert "every cell was trained with one setting only, and all of them with one learning rate" in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"status": "diverged", "top1": None}, "vit_nano3 would have done: 1 run diverged or failed (11 % of all)"),
        ({"device": "gpu"}, "What a device-hour or an image a second is worth across cpu, gpu"),
        ({}, "What 1 of the grid's 6 cells would give"),
        ({}, "How much of 1 of 5 cells is luck"),
    ],
)
def test_each_gap_is_named(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    for rung in (1, 2):
        for size in (500, 2000):
            for seed in (0, 1):
                write_run(tmp_path, result(f"vit_nano{rung}", size, seed))
    write_run(tmp_path, result("vit_nano3", 500, 0, **changes))
    assert sentence in limits_of(tmp_path)


def test_nothing_done_has_nothing_to_conclude(tmp_path: Path) -> None:
    write_run(tmp_path, result("vit_nano1", 500, 0, status="failed", top1=None))
    assert limits_of(tmp_path) == ""

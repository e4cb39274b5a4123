"""Cells as people name them."""

import json

import pytest

from tests.sweep import fake_fit
from vitlight.errors import InputError
from vitlight.sweep import load_sweep, plan_sweep
from vitlight.sweep.selection import select_cells


@pytest.fixture
def planned(write_sweep, tmp_path):
    """Cell 0 is done, cell 1 has failed, the other four wait."""
    parameters = {"model.arch": ["ok_1", "ok_2", "ok_3"], "seed_everything": [0, 1]}
    planned = plan_sweep(load_sweep(write_sweep(parameters)), fake_fit.resolve, tmp_path)
    for item, status in zip(planned, ("done", "failed"), strict=False):
        item.run.run_dir.mkdir(parents=True)
        (item.run.run_dir / "result.json").write_text(json.dumps({"status": status}))
    return planned


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["3"], [3]),
        (["4", "0-1", "4"], [0, 1, 4]),
        (["4-99"], [4, 5]),
        (["failed"], [1]),
        (["waiting"], [2, 3, 4, 5]),
        (["arch=ok_2"], [2, 3]),
        (["model.arch=ok_3", "seed_everything=0"], [0, 2, 4, 5]),
    ],
)
def test_cells_are_named_in_many_ways(planned, words, numbers):
    assert [item.cell.index for item in select_cells(planned, words)] == numbers


def test_a_run_is_named_by_the_beginning_of_its_id(planned):
    item = next(item for item in planned if not item.run.run_id[:5].isdecimal())
    assert select_cells(planned, [item.run.run_id]) == select_cells(planned, [item.run.run_id[:5]]) == [item]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("6", r"^no cell of the sweep is '6'; name a number"),
        ("running", r"^no cell of the sweep is 'running'; name"),
        ("zz", r"^no cell of the sweep is 'zz'"),
        ("arch=ok_9", r"^no cell of the sweep is 'arch=ok_9'"),
        ("arhc=ok_1", r"^arhc in arhc=ok_1 is no setting of a cell; did you mean"),
    ],
)
def test_a_word_that_names_none_is_refused(planned, word, message):
    with pytest.raises(InputError, match=message):
        select_cells(planned, [word])

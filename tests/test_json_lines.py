"""Rows of a file that may be growing, or end in the middle of one."""

import json

import pytest

from vitlight.json_lines import read_rows


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_whole_rows_in_order(path):
    rows = [{"step": step} for step in range(5)]
    whole = "".join(json.dumps(row) + "\n" for row in rows)
    for torn in ("", '{"st', '{"step": 5}'):  # the last one may go on: its line has not ended
        path.write_text(whole + torn)
        assert read_rows(path) == rows


def test_what_is_no_object_is_left_out(path):
    path.write_text('{"a": 1}\nnonsense\n[1]\n\n7\n{"b": 2}\n')
    assert read_rows(path) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("tail_bytes", range(1, 60))
def test_of_a_tail_the_rows_that_begin_after_its_first_line(path, tail_bytes):
    rows = [{"step": step} for step in range(10, 14)]  # 13 bytes each
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert path.stat().st_size == 52
    found = read_rows(path, tail_bytes)
    assert found == rows[len(rows) - len(found) :]
    # The line that the tail begins in is left out, also where it begins with it.
    assert len(found) == (4 if tail_bytes >= 52 else (tail_bytes - 1) // 13)


def test_no_file_has_no_rows(path):
    assert read_rows(path) == []

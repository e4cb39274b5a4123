"""What is asked of runners: by whoever, in order, and of those alone that are at work."""

import json

import pytest

from vitlight.errors import InputError
from vitlight.sweep.requests import Requests, write_request


def test_only_what_is_asked_later_is_heard_and_once_in_order(tmp_path):
    write_request(tmp_path, "stop", None)
    first, second = Requests(tmp_path), Requests(tmp_path)
    assert list(first.new()) == []
    asked = [write_request(tmp_path, "stop", ["a", "b"]), write_request(tmp_path, "retry", ["a"])]
    assert list(first.new()) == asked
    assert list(first.new()) == []
    asked.append(write_request(tmp_path, "stop", None))
    assert list(first.new()) == asked[2:]
    assert list(second.new()) == asked
    assert [each.concerns("b") for each in asked] == [True, False, True]


def test_a_request_that_was_never_written_whole_hides_none(tmp_path):
    requests = Requests(tmp_path)
    write_request(tmp_path, "stop", ["a"])
    (tmp_path / "requests" / "2.json").touch()
    assert [each.run_ids for each in requests.new()] == [("a",)]
    assert list(requests.new()) == []
    write_request(tmp_path, "stop", ["b"])
    assert json.loads((tmp_path / "requests" / "3.json").read_text())["run_ids"] == ["b"]
    assert [each.run_ids for each in requests.new()] == [("b",)]


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "requests").write_text("a file")
    with pytest.raises(InputError, match=rf"^{tmp_path} can't be written \(.*\); nothing was asked$"):
        write_request(tmp_path, "stop", None)

import json
import math
import multiprocessing
import os

import pytest

from vitlight.errors import InputError
from vitlight.training.record import RunDirectory, code_commit, package_versions


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    return directory


def test_rows_after_a_checkpoint_are_superseded(run):
    for step in (1, 2):
        run.append({"step": step})
    length = run.metrics_length()
    run.append({"step": 3, "train/loss": math.nan})
    assert [row["step"] for row in run.rows()] == [1, 2, 3]
    assert run.rows()[2]["train/loss"] is None
    run.rewind_metrics(length)
    run.append({"step": 3, "train/loss": 0.5})
    assert run.rows() == [{"step": 1}, {"step": 2}, {"step": 3, "train/loss": 0.5}]


def test_a_torn_last_row_is_left_out(run):
    run.append({"step": 1})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "tra')
    assert run.rows() == [{"step": 1}]


def test_lost_rows_are_noticed(run):
    run.append({"step": 1})
    with pytest.raises(InputError, match="its checkpoint remembers 99999: rows were lost"):
        run.rewind_metrics(99999)


def test_results_are_strict_json(run):
    assert run.read_result() is None
    run.write_result({"status": "done", "top1": math.nan, "train_flops": 3 * 2 * 10**21})
    text = run.result_path.read_text()
    assert json.loads(text) == {"status": "done", "top1": None, "train_flops": 6 * 10**21}
    assert run.read_result() == json.loads(text)


def _hold(path, ready, release):
    with RunDirectory(path).claimed():
        ready.set()
        release.wait(30)


def test_only_one_process_works_in_a_directory(run):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(run.path, ready, release))
    process.start()
    assert ready.wait(30)
    with pytest.raises(InputError, match=f"in progress in process {process.pid} on"), run.claimed():
        pass
    process.kill()  # the lock goes with its holder
    process.join(30)
    with run.claimed():
        assert (run.path / ".lock").read_text().startswith(str(os.getpid()))


def test_versions_and_commit_say_what_ran():
    versions = package_versions()
    assert {"python", "vitlight", "torch", "lightning", "torchmetrics"} <= set(versions)
    commit = code_commit()
    assert commit is None or len(commit.split("-")[0]) >= 7

"""How cells are started, and how the machine is shared between them."""

import os
import signal
import sys
import time

import pytest

from vitlight.errors import InputError
from vitlight.sweep.executors import LocalExecutor, slot_environment, visible_gpus


def wait(job):
    while (code := job.poll()) is None:
        time.sleep(0.01)
    return code


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def start(tmp_path, code, *args, slot=0, jobs=1):
    executor = LocalExecutor(jobs, [sys.executable, "-c", code])
    return executor.start(args, slot, tmp_path / "log", os.open(tmp_path / "claim", os.O_CREAT | os.O_RDWR))


def test_output_and_errors_are_appended_to_the_log(tmp_path):
    code = "import sys; print(sys.argv[1:]); print(sys.stdin.read(), end=''); sys.exit('an error')"
    assert wait(start(tmp_path, code, "fit", "--a=b c")) == 1
    assert wait(start(tmp_path, "print('again')")) == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == ["$ vitlight fit '--a=b c'", "['fit', '--a=b c']", "an error", "$ vitlight ", "again"]


def test_jobs_end_on_request_and_kill_takes_the_whole_group(tmp_path):
    job = start(tmp_path, "import time; time.sleep(60)")
    job.terminate()
    assert wait(job) == -signal.SIGTERM
    code = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    job = start(tmp_path, code)
    job.kill()
    assert wait(job) == -signal.SIGKILL
    job.kill()


def test_jobs_must_be_positive():
    with pytest.raises(InputError, match="jobs is 0; it must be 1 or more: change --jobs"):
        LocalExecutor(0)


def test_gpus_are_dealt_out_in_turn():
    def dealt(jobs, gpus):
        return [slot_environment(slot, jobs, gpus).get("CUDA_VISIBLE_DEVICES") for slot in range(jobs)]

    assert dealt(2, "01234") == ["0,2,4", "1,3"]
    assert dealt(4, "4567") == ["4", "5", "6", "7"]
    assert dealt(5, "01") == ["0", "1", "0", "1", "0"]
    assert dealt(1, "01") == [None]


def test_without_gpus_the_cores_are_shared_out(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert slot_environment(0, 1, ()).get("OMP_NUM_THREADS") is None
    assert slot_environment(1, 3, ())["OMP_NUM_THREADS"] == "2"
    assert slot_environment(1, 9, ())["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in slot_environment(1, 3, ("0",))
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "OMP_NUM_THREADS" not in slot_environment(1, 3, ())


@pytest.mark.parametrize(
    ("listed", "gpus"), [("", ()), ("-1", ()), ("0", ("0",)), ("2, GPU-8a", ("2", "GPU-8a")), ("1,-1,0", ("1",))]
)
def test_visible_gpus(monkeypatch, listed, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert visible_gpus() == gpus


def test_a_slots_environment_reaches_the_job(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    assert wait(start(tmp_path, code, slot=1, jobs=2)) == 0
    assert (tmp_path / "log").read_text().splitlines()[1] == "5"

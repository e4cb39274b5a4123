"""How cells are started as separate processes."""

import os
import signal
import sys
import time

import pytest

from vitlight.errors import InputError
from vitlight.sweep.executors import LocalExecutor


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


def test_a_slots_environment_reaches_the_job(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    assert wait(start(tmp_path, code, slot=1, jobs=2)) == 0
    assert (tmp_path / "log").read_text().splitlines()[1] == "5"

"""Warm cells: forked, and yet in everything what a separate process is."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitlight.sweep.executors import LocalExecutor
from vitlight.sweep.warm import WarmExecutor

REPOSITORY = Path(__file__).parents[2]
CELL = "tests.sweep.cell"
DEADLINE_SECONDS = 60.0
SLEEP = "import os, time; print('ready', os.getpid(), flush=True); time.sleep(60)"


def wait(job):
    wait_for(lambda: job.poll() is not None)
    return job.poll()


def wait_for(condition):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def take_lock(path):
    """A descriptor that holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def is_locked(path):
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.fixture
def warm():
    with WarmExecutor(1, CELL, None) as executor:
        yield executor


class Log:
    """Starts cells whose output it has."""

    def __init__(self, folder):
        self.folder, self.number, self.claims = folder, 0, []

    def start(self, executor, code, *args, slot=0):
        self.number += 1
        self.path = self.folder / f"log{self.number}"
        self.claims.append(take_lock(self.folder / f"claim{self.number}"))
        return executor.start([code, *args], slot, self.path, self.claims[-1])

    def release_claims(self):
        """As a runner does that has ended: the cells alone have them."""
        while self.claims:
            os.close(self.claims.pop())

    def words(self):
        """Of the last whole line."""
        return self.path.read_text().rpartition("\n")[0].split("\n")[-1].split()

    def pid(self):
        """That the cell has written."""
        wait_for(lambda: self.words()[:1] == ["ready"])
        return int(self.words()[1])


@pytest.fixture
def log(tmp_path):
    log = Log(tmp_path)
    yield log
    log.release_claims()


def test_a_cell_finds_what_a_separate_process_finds(warm, log, monkeypatch, tmp_path):
    code = """
import json, os, signal, sys, threading
paths = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
found = {
    "argv": sys.argv[1:],
    "program": os.path.basename(sys.argv[0]),
    "main": __spec__.name == sys.modules["__main__"].__spec__.name,
    "path": sys.path,
    "folder": os.getcwd(),
    "environment": {name: value for name, value in os.environ.items() if name != "_"},
    "leads its group": os.getpgid(0) == os.getpid(),
    "stdin": sys.stdin.read(),
    "signals": {n: str(signal.getsignal(n)).partition(" at ")[0] for n in signal.valid_signals()},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "wakes": signal.set_wakeup_fd(-1),
    "threads": (threading.active_count(), len(os.listdir("/proc/self/task"))),
    "open": sorted(os.readlink(path) for path in paths if os.path.exists(path)),
    "unbuffered": [stream.write_through for stream in (sys.stdout, sys.stderr)],
    "umask": os.umask(0o22),
}
print(json.dumps(found))
"""
    monkeypatch.setenv("A_SETTING", "of the cell's own")
    monkeypatch.chdir(tmp_path)
    found = {}
    for executor in (warm, LocalExecutor(1, (sys.executable, "-m", CELL))):
        job = log.start(executor, code, "fit", "--a=b c")
        assert wait(job) == 0, log.path.read_text()
        found[type(executor).__name__] = json.loads(log.path.read_text().splitlines()[-1].replace(log.path.name, "log"))
    warm_one, separate = found["WarmExecutor"], found["LocalExecutor"]
    for one in (warm_one, separate):  # a claim of its own, under another name
        assert any("claim" in path for path in one["open"])
        one["open"] = [path for path in one["open"] if "claim" not in path]
    # A process that is started with -m finds the folder of its start in front; the cell's is where the runner began.
    assert warm_one.pop("path")[1:] == separate.pop("path")[1:]
    assert warm_one == separate
    assert warm_one["environment"]["A_SETTING"] == "of the cell's own"


def test_a_cell_ends_as_a_separate_process_ends(warm, log):
    code = """
import atexit, sys, threading, time
class Cycle:
    def __del__(self):
        print("collected")
Cycle.kept = None
one = Cycle()
one.itself = one
del one
atexit.register(print, "at exit")
def late():
    time.sleep(0.1)
    print("thread")
threading.Thread(target=late).start()
sys.stdout.write("main ")
"""
    said = []
    for executor in (warm, LocalExecutor(1, (sys.executable, "-m", CELL))):
        assert wait(log.start(executor, code)) == 0
        said.append(log.path.read_text()[-40:].splitlines()[-3:])
    assert said == [["main thread", "at exit", "collected"]] * 2


@pytest.mark.parametrize(
    ("code", "exit_code", "last"),
    [
        ("", 0, ""),
        ("import sys; sys.exit(75)", 75, ""),
        ("import sys; sys.exit('an error')", 1, "an error"),
        ("raise ValueError('a reason')", 1, "ValueError: a reason"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM); import time; time.sleep(60)", -signal.SIGTERM, ""),
        ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV, ""),
    ],
)
def test_exit_codes_arrive_and_other_cells_go_on(warm, log, code, exit_code, last):
    other = log.start(warm, SLEEP)
    log.pid()
    assert wait(log.start(warm, code)) == exit_code
    lines = log.path.read_text().splitlines()
    assert lines[-1] == last if last else lines[-1].startswith("$ vitlight ") or "Fatal" not in lines[-1]
    assert other.poll() is None
    other.kill()
    assert wait(other) == -signal.SIGKILL


def test_cells_end_on_request_and_kill_takes_the_whole_group(warm, log):
    job = log.start(warm, SLEEP)
    job.terminate()  # before it is there: it gets the signal as soon as it is
    assert wait(job) == -signal.SIGTERM
    job.terminate()
    job.kill()
    job = log.start(
        warm,
        "import subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '60']); print('ready', child.pid, flush=True); child.wait()",
    )
    child = log.pid()
    job.kill()
    assert wait(job) == -signal.SIGKILL
    wait_for(lambda: not is_alive(child))


def test_the_claim_is_the_cells_alone(warm, log, tmp_path):
    first = log.start(warm, SLEEP)
    log.pid()
    second = log.start(warm, SLEEP)
    log.pid()
    log.release_claims()
    assert is_locked(tmp_path / "claim1")
    assert is_locked(tmp_path / "claim2")
    first.kill()
    assert wait(first) == -signal.SIGKILL
    assert not is_locked(tmp_path / "claim1")
    assert is_locked(tmp_path / "claim2")
    second.kill()
    assert wait(second) == -signal.SIGKILL
    assert not is_locked(tmp_path / "claim2")


def test_cells_outlive_a_killed_runner_with_their_claims(log, tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from tests.sweep.test_warm import CELL, Log, SLEEP, WarmExecutor
log = Log(Path({str(tmp_path)!r}))
executor = WarmExecutor(1, CELL, None)
job = log.start(executor, SLEEP)
print(executor.pid, log.pid(), flush=True)
time.sleep(60)
"""
    runner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    zygote, cell = map(int, runner.stdout.readline().split())
    runner.kill()
    runner.communicate()
    wait_for(lambda: not is_alive(zygote))
    assert is_alive(cell)
    assert is_locked(tmp_path / "claim1")
    os.kill(cell, signal.SIGKILL)
    wait_for(lambda: not is_locked(tmp_path / "claim1"))


def test_a_lost_zygote_takes_no_cell_along(warm, log, tmp_path, capfd):
    code = "import os, sys, time\nprint('ready', os.getpid(), flush=True)\n"
    code += "while not os.path.exists(sys.argv[1]): time.sleep(0.01)"
    job = log.start(warm, code, str(tmp_path / "gate"))
    assert is_alive(log.pid())
    first_log = log.path
    os.kill(warm.pid, signal.SIGKILL)
    assert job.poll() is None
    later = log.start(warm, "import sys; sys.exit(7)")
    assert wait(later) == 7
    line = "the process that preloads cells was killed by SIGKILL; cells start as separate processes from now on"
    assert capfd.readouterr().err == f"vitlight: {line}\n"
    assert job.poll() is None
    log.release_claims()
    assert is_locked(tmp_path / "claim1")
    (tmp_path / "gate").touch()
    assert wait(job) == 1
    assert "exit code is unknown" in first_log.read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("variable", "reason"),
    [
        ("PRELOAD_STARTS_A_THREAD", "a cell starts as a separate process, as it could not be forked: it has 2 threads"),
        (
            "PRELOAD_FAILS",
            "the process that preloads cells ended with exit code 1: RuntimeError: nothing can be imported here; cells "
            "start as separate processes from now on",
        ),
    ],
)
def test_where_nothing_can_be_forked_cells_start_all_the_same(log, monkeypatch, capfd, variable, reason):
    monkeypatch.setenv(variable, "1")
    with WarmExecutor(1, CELL, CELL) as executor:
        jobs = [log.start(executor, "import os, sys; sys.exit(5)") for _ in range(2)]
        assert [wait(job) for job in jobs] == [5, 5]
    assert set(capfd.readouterr().err.splitlines()) == {f"vitlight: {reason}"}


def test_signals_of_a_terminal_or_a_job_end_cells_but_not_what_starts_them(warm, log):
    job = log.start(warm, SLEEP)
    cell = log.pid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        os.kill(warm.pid, number)
    os.kill(cell, signal.SIGUSR1)  # nohup ignores SIGHUP, and a cell ignores what its caller does
    assert wait(job) == -signal.SIGUSR1
    assert wait(log.start(warm, "print('still here')")) == 0
    assert log.words() == ["still", "here"]

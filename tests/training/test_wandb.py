import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.training.fake_wandb import FakeWandb
from vitlight.errors import InputError
from vitlight.training.record import RunDirectory
from vitlight.training.wandb import start_wandb
from vitlight.training.wandb_process import children_of
from vitlight.training.wandb_run import catch_up


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def fake(monkeypatch, tmp_path):
    folder = tmp_path / "fake"
    folder.mkdir()
    fake = FakeWandb(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
    monkeypatch.setenv("FAKE_WANDB_CALLS", str(fake.calls_path))
    return fake


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "abc")
    run.create()
    return run


def is_alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def write_rows(run: RunDirectory, first: int, last: int) -> None:
    for step in range(first, last + 1):
        run.append({"event": "train", "step": step, "data/samples_seen": 16 * step, "train/loss": 1 / step})


def write_evaluation(run: RunDirectory) -> None:
    run.append({"event": "val", "step": 5, "val/top1": 0.5, "val/loss": None, "time/step": 0.1})


def start(run: RunDirectory, finish_seconds: float = 60.0):
    return start_wandb(run, "abc", "n", "g", ["vit", "vit_nano1"], "p", {"a": 1}, finish_seconds)


def test_every_row_arrives_once_in_order_with_its_axes(run, fake):
    projection = start(run)
    for step in range(1, 6):
        write_rows(run, step, step)
        projection.rows_written()
    write_evaluation(run)
    projection.finish({"top1": 0.5, "reason": None}, 0)
    ((init, _),) = fake.calls("init")
    assert (init["id"], init["name"], init["group"], init["job_type"]) == ("abc", "n", "g", "fit")
    assert (init["tags"], init["project"], init["config"]) == (["vit", "vit_nano1"], "p", {"a": 1})
    assert fake.calls("log") == [
        *([{"data/samples_seen": 16 * i, "train/loss": 1 / i, "trainer/global_step": i}, i - 1] for i in range(1, 6)),
        [{"val/top1": 0.5, "time/step": 0.1, "trainer/global_step": 5}, 5],
    ]
    axes = {
        **{"data/samples_seen": None, "compute/train_flops": None, "val/top1": "compute/train_flops"},
        **dict.fromkeys(("train/loss", "time/step", "trainer/global_step"), "data/samples_seen"),
    }
    assert sorted(fake.calls("define_metric")) == sorted([name, axis] for name, axis in axes.items())
    assert fake.calls("summary") == [[{"top1": 0.5}]]
    assert fake.calls("finish") == [[0]]


def test_no_key_means_offline_and_never_a_prompt(run, fake, monkeypatch, tmp_path):
    def mode_and_resume() -> tuple:
        start(run).finish({}, 0)
        init, _ = fake.calls("init")[-1]
        return init["mode"], init["resume"], init["project"]

    assert mode_and_resume() == ("offline", None, "p")
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password " + "k" * 40 + "\n")
    (tmp_path / "netrc").chmod(0o600)
    assert mode_and_resume() == ("offline", None, "p")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert mode_and_resume() == (None, "allow", "p")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    for name, value in {"RUN_GROUP": "ours", "NAME": "first", "TAGS": "x,y", "JOB_TYPE": "trial"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert mode_and_resume() == ("offline", None, "mine")
    init, _ = fake.calls("init")[-1]
    assert (init["group"], init["name"], init["job_type"]) == ("ours", "first", "trial")
    assert init["tags"] == ["vit", "vit_nano1", "x", "y"]


def test_other_ranks_and_runs_without_it_start_nothing(run, fake, monkeypatch):
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert start(run) is None
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert start(run) is None
    assert not (run.path / "wandb").exists()


def test_a_resumed_run_sends_what_the_server_lacks(run, fake, monkeypatch):
    """The server has 4 rows; the record was cut back to 3 and grows to 6: it gets the last two."""
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("FAKE_WANDB_STARTING_STEP", "4")
    write_rows(run, 1, 3)
    projection = start(run)
    projection.rows_written()
    write_rows(run, 4, 6)
    projection.rows_written()
    projection.finish({}, 0)
    assert [(row["trainer/global_step"], step) for row, step in fake.calls("log")] == [(5, 4), (6, 5)]


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_service_that_hangs_for_ever_is_given_up(run, fake, monkeypatch, where):
    monkeypatch.setenv("FAKE_WANDB", f"hang in {where}")
    projection = start(run, finish_seconds=1.0)
    for step in range(1, 300):  # more than a pipe would take of rows
        write_rows(run, step, step)
        projection.rows_written()
    deadline = time.monotonic() + 60
    while where == "finish" and len(fake.calls("log")) < 299 and time.monotonic() < deadline:
        time.sleep(0.05)
    taken = 299 if where == "finish" else 0
    with pytest.warns(
        UserWarning, match=f"W&B lacks rows of this run, .*metrics.jsonl has them all: it took {taken} of 299"
    ):
        projection.finish({}, 0)
    assert len(run.rows()) == 299
    assert projection._process.returncode is not None
    assert children_of(projection._process.pid) == []


def test_a_service_that_refuses_every_row_is_one_warning(run, fake, monkeypatch):
    monkeypatch.setenv("FAKE_WANDB", "raise in log")
    projection = start(run)
    write_rows(run, 1, 3)
    with pytest.warns(UserWarning, match="W&B lacks rows of this run.*ConnectionError: no route to host") as caught:
        projection.finish({"top1": 1.0}, 0)
    assert len(caught) == 1
    assert [step for _, step in fake.calls("log")] == [0, 1, 2]
    assert fake.calls("finish") == [[0]]


def test_a_server_that_refuses_the_run_leaves_it_offline(run, fake, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("FAKE_WANDB", "raise in init")
    projection = start(run)
    write_rows(run, 1, 2)
    with pytest.warns(UserWarning, match="no route to host; they are in its offline folder, for `wandb sync`"):
        projection.finish({}, 0)
    assert [mode["mode"] for _, mode in fake.calls("init")] == [None, "offline"]
    assert len(fake.calls("log")) == 2


def test_a_run_that_is_killed_leaves_a_finished_projection(run, fake):
    """SIGKILL of the run: its process for W&B sends what stands in the record, and ends."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            projection = start(run)
            write_rows(run, 1, 4)
            projection.rows_written()
            os.write(writing, str(projection._process.pid).encode())
            time.sleep(1000)
        finally:
            os._exit(1)
    pid = int(os.read(reading, 100))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading), os.close(writing)
    deadline = time.monotonic() + 60
    while not fake.calls("finish") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [step for _, step in fake.calls("log")] == [0, 1, 2, 3]
    assert fake.calls("finish") == [[1]]
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def test_a_run_that_has_ended_is_brought_up_to_date_or_shown_anew(run, fake):
    """Also one that was never shown: what it was is in experiment.yaml and result.json."""
    settings = {"name": "g", "tags": ["mine"], "wandb_project": "p"}
    run.experiment_path.write_text(yaml.safe_dump({"run": settings, "data": {"train": "https://u:secret@h/a.tar"}}))
    facts = {"arch": "vit_nano1", "params": 5, "forward_macs": 7, "num_train_samples": 9, "seed": 1}
    write_rows(run, 1, 3)
    with pytest.raises(InputError, match=r"no result.json and metrics.jsonl: its run has not ended"):
        catch_up(run.path, 60.0)
    run.write_result({"run_id": "abc", "status": "done", "top1": 0.25, "versions": {"torch": "2"}, **facts})
    shown = catch_up(run.path, 60.0)
    assert (shown.num_rows, shown.problem) == (3, None)
    (init, _) = fake.calls("init")[-1]
    assert (init["id"], init["name"], init["group"]) == ("abc", "vit_nano1 9 s1", "g")
    assert init["tags"] == ["vit", "vit_nano1", "mine"]
    assert (init["config"]["params"], init["config"]["run"]) == (5, settings)
    assert "secret" not in json.dumps(init)
    summary = {"status": "done", "params": 5, "forward_macs": 7, "top1": 0.25}
    assert fake.calls("summary")[-1] == [summary]
    catch_up(run.path, 60.0, anew=True)
    name = fake.calls("init")[-1][0]["id"]
    assert name.startswith("abc-")
    assert [step for _, step in fake.calls("log")] == [0, 1, 2, 0, 1, 2]
    catch_up(run.path, 60.0)
    assert fake.calls("init")[-1][0]["id"] == name
    assert fake.calls("finish") == [[0]] * 3


def offline_records(run: RunDirectory) -> list[dict]:
    """Of the one offline folder there is."""
    (path,) = (run.path / "wandb").glob("offline-run-*/*.wandb")
    leet = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(path)]
    printed = subprocess.run(leet, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in printed.stdout.splitlines()]


def test_a_resumed_offline_run_is_one_folder_with_every_row_once(run, monkeypatch):
    """With the real W&B: 5 rows, cut back to 3, then 4 to 7."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_rows(run, 1, 3)
    length = run.metrics_length()
    write_rows(run, 4, 5)
    start(run).finish({}, 75)
    run.rewind_metrics(length)
    projection = start(run)
    projection.rows_written()
    write_rows(run, 4, 7)
    projection.finish({"top1": 0.5}, 0)
    records = offline_records(run)
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [(row["_step"], row["trainer/global_step"]) for row in rows] == [(i, i + 1) for i in range(7)]
    (started,) = [record["run"] for record in records if record["type"] == "run" and "display_name" in record["run"]]
    assert (started["run_group"], started["job_type"], started["tags"]) == ("g", "fit", ["vit", "vit_nano1"])
    assert [record["exit"]["exit_code"] for record in records if record["type"] == "exit"] == [0]


def test_a_server_that_never_answers_is_given_up_and_leaves_no_process(run, monkeypatch):
    """The real W&B, and a server that takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        projection = start(run, finish_seconds=1.0)
        write_rows(run, 1, 2)
        pid = projection._process.pid
        deadline = time.monotonic() + 60
        while not (services := children_of(pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert services
        with pytest.warns(UserWarning, match="it took 0 of 2 rows within 1 s of the end"):
            projection.finish({}, 0)
    assert not any(map(is_alive, (pid, *services)))

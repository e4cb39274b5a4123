"""Real runs and the real `wandb`, over HTTP: what the server is told, and by whom."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from tests.training.test_run import rows_without_times
from tests.wandb.server import KEY, open_server
from vitlight.analysis.runs import load_runs
from vitlight.cli import main
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run

AGENT = {"WANDB_SWEEP_ID": "sweep7", "WANDB_RUN_ID": "cell3", "WANDB_PROJECT": "sweeps", "WANDB_ENTITY": "tester"}


def directory_of(args) -> RunDirectory:
    return RunDirectory(resolve_run(args).run_dir)


def shown_rows(run: RunDirectory) -> list[dict]:
    """The record's rows as W&B should have them: numbers alone, the line's number as step; W&B drops what is null."""
    numbers = [
        {name: value for name, value in row.items() if "/" in name and isinstance(value, int | float)}
        | {"trainer/global_step": row["step"], "_step": line}
        for line, row in enumerate(run.rows())
    ]
    return [{name: pytest.approx(value) for name, value in row.items()} for row in numbers]


def without_times(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if not name.startswith(("time/", "perf/"))} for row in rows]


def stop_at_7(once, signum) -> str:
    """A setting: the first attempt gets a signal when 7 steps are done, two after a checkpoint."""
    where = f"{{moment: train, step: 7, once: {once}, signum: {int(signum)}}}"
    return f"--trainer.callbacks+={{class_path: tests.training.signal_at.SignalAt, init_args: {where}}}"


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_run_is_one_run_from_rank_0_alone(server, fit, fit_args, num_ranks):
    args = [*fit_args, "--trainer.devices=auto", "--run.tags=[mine]", "--run.wandb_project=scaling"]
    codes, log = fit(server, args, num_ranks)
    assert codes == [0] * num_ranks, log
    run = directory_of(args)
    result = run.read_result()
    assert result["num_ranks"] == num_ranks
    (shown,) = server.runs.values()
    assert (shown.id, shown.project, shown.group, shown.job_type) == (run.path.name, "scaling", "tiny", "fit")
    assert shown.tags == ["vit", "vit_nano1", "mine"]
    assert (shown.display_name, shown.sweep) == (f"vit_nano1 {result['num_train_samples']} s0", None)
    assert (shown.num_starts, shown.exit_codes) == (1, [0])
    assert server.count("RunResumeStatus") == 1
    # Every row of the record, with every axis, and each axis bound to what is drawn against it.
    assert shown.rows == shown_rows(run)
    assert {row["trainer/global_step"] for row in shown.rows} == {2, 4, 6, 8, 10, 12}
    for row in shown.rows:
        assert row.keys() > {"data/samples_seen", "data/unique_samples_seen", "data/epochs", "compute/train_flops"}
    assert shown.axes == {
        name: None
        if name in ("data/samples_seen", "compute/train_flops")
        else "compute/train_flops"
        if name.startswith(("val/", "test/"))
        else "data/samples_seen"
        for row in shown.rows
        for name in row.keys() - {"_step"}
    }
    settings = {name: entry["value"] for name, entry in shown.config.items()}
    assert settings["model"]["arch"] == settings["arch"] == "vit_nano1"
    assert (settings["params"], settings["num_train_samples"]) == (result["params"], result["num_train_samples"])
    assert settings["run"]["name"] == "tiny"
    (process,) = settings["_wandb"]["e"].values()
    assert (process["program"], process["args"]) == ("vitlight", ["fit"])
    for name in ("status", "top1", "train_flops", "params", "samples_seen", "val_top1"):
        assert shown.summary[name] == pytest.approx(result[name]), name
    # The run table, and so the report, know where it is.
    assert load_runs(run.path).wandb_url.item().endswith(f"/runs/{run.path.name}")
    # One line says where it is, on whatever number of ranks, and nothing else is said.
    said = [line for line in log.splitlines() if "W&B" in line and not line.startswith("waiting up to")]
    assert said == [f"W&B: {server.url}/tester/scaling/runs/{shown.id}"]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_a_resumed_run_goes_on_where_its_rows_ended(server, fit, fit_args, tmp_path, signum, code):
    """Stopped after step 7, with a checkpoint, or killed there, two steps after one: no row is lost, none comes twice."""
    args = [*fit_args, stop_at_7(tmp_path / "once", signum)]
    codes, log = fit(server, args)
    assert codes == [code], log
    wait_for(lambda: server.runs)  # a killed run's process for W&B goes on by itself
    (shown,) = server.runs.values()
    wait_for(lambda: shown.exit_codes)
    assert shown.exit_codes == [75 if code == 75 else 1]
    assert [row["trainer/global_step"] for row in shown.rows if "train/loss" in row][:3] == [2, 4, 6]
    assert len(shown.rows) < 10
    codes, log = fit(server, args)
    assert codes == [0], log
    run = directory_of(fit_args)
    assert list(server.runs) == [run.path.name]
    assert (shown.num_starts, shown.exit_codes[1:]) == (2, [0])
    assert without_times(shown.rows) == without_times(shown_rows(run))
    assert shown.summary["top1"] == pytest.approx(run.read_result()["top1"])
    fit(server, fit_args)
    assert shown.num_starts == 2  # it is done, and nothing more is said


def test_the_run_of_an_agent_stays_the_agents_when_it_is_resumed_without_it(server, fit, fit_args, tmp_path):
    """Also when the one who resumes it has another project, and where it began as no agent's run."""
    args = [*fit_args, stop_at_7(tmp_path / "once", signal.SIGTERM)]
    codes, log = fit(server, args, env=AGENT)
    assert codes == [75], log
    (shown,) = server.runs.values()
    assert (shown.id, shown.sweep, shown.project, shown.num_starts) == ("cell3", "sweep7", "sweeps", 1)
    codes, log = fit(server, args, env={"WANDB_PROJECT": "other"})
    assert codes == [0], log
    run = directory_of(fit_args)
    assert list(server.runs) == ["cell3"]
    assert (shown.sweep, shown.num_starts, shown.exit_codes) == ("sweep7", 2, [75, 0])
    assert without_times(shown.rows) == without_times(shown_rows(run))
    # A sweep asks for what is done already: it gets the whole of it, under its own id.
    codes, log = fit(server, args, env={**AGENT, "WANDB_SWEEP_ID": "sweep8", "WANDB_RUN_ID": "cell0"})
    assert (codes, "done already, nothing to do" in log) == ([0], True)
    assert list(server.runs) == ["cell3", "cell0"]
    again = server.runs["cell0"]
    assert (again.sweep, again.exit_codes, again.summary["status"]) == ("sweep8", [0], "done")
    assert without_times(again.rows) == without_times(shown.rows)


def test_ended_runs_are_brought_up_to_date_by_a_command(server, fit_args, tmp_path, capsys, monkeypatch):
    """One trained without W&B, the same again, anew, and offline for `wandb sync`; one that has not ended is left out."""
    for name, value in {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(fit_args) == 0
    run = directory_of(fit_args)
    other = run.path.with_name("unfinished")
    other.mkdir()
    (other / "experiment.yaml").touch()
    capsys.readouterr()
    for num_starts in (1, 2):
        assert main(["wandb", str(run.path.parent)]) == 0
        said = capsys.readouterr()
        assert said.out.splitlines() == [
            f"{run.path}: W&B has all {len(run.rows())} rows",
            "left out: 1 runs that have not ended",
        ]
        assert f"W&B: {server.url}/tester/vitlight/runs/{run.path.name}" in said.err.splitlines()
        (shown,) = server.runs.values()
        assert (shown.num_starts, shown.group, shown.rows) == (num_starts, "tiny", shown_rows(run))
        assert shown.summary["top1"] == pytest.approx(run.read_result()["top1"])
    assert main(["wandb", "--anew", "--json", str(run.path)]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["problem"], told["offline_folder"]) == (10, None, None)
    again = server.runs[told["url"].rpartition("/")[2]]
    assert again.id.startswith(f"{shown.id}-")
    assert (again.rows, shown.num_starts) == (shown.rows, 2)
    server.failing["graphql"] = 401
    assert main(["wandb", "--finish-seconds", "120", str(run.path)]) == 1
    assert f"{run.path}: W&B lacks rows: CommError: " in capsys.readouterr().out
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["wandb", str(run.path)]) == 0
    (folder,) = run.path.glob("wandb/offline-run-*")  # the newest alone is left
    assert capsys.readouterr().out == f"{run.path}: 10 rows in an offline folder, for `wandb sync {folder}`\n"
    with open_server() as elsewhere:
        environment = {**os.environ, "WANDB_MODE": "online", "WANDB_BASE_URL": elsewhere.url}
        command = [sys.executable, "-m", "wandb", "sync", str(folder)]
        subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=120)
        (synced,) = elsewhere.runs.values()
    assert (synced.rows, synced.group, synced.exit_codes) == (shown.rows, "tiny", [0])
    assert synced.summary["top1"] == shown.summary["top1"]
    assert main(["wandb", str(other)]) == 2
    assert "none of the 1 runs" in capsys.readouterr().err


GAVE_UP = r"it took \d+ of 10 rows within 1 s of the end"
OFFLINE = "CommError: .* 401: .*; they are in its offline folder, for `wandb sync`"
STOPPED = "Fatal error while uploading data"
# How a part of the server fails -> what is said of it. What W&B says itself comes with its version.
FAILURES = {
    "graphql": {401: OFFLINE, 500: GAVE_UP, "hang": GAVE_UP},
    "rows": {401: STOPPED, 500: GAVE_UP, "hang": GAVE_UP},
    "end": {401: STOPPED, 500: GAVE_UP, "hang": GAVE_UP},
}
WITHOUT_FAULT = ("W&B: http", "waiting up to")
CHANGING = ("wall", "device_seconds", "own_device", "images_per", "started", "finished", "commit", "verdict", "perf")


def lasting(run: RunDirectory) -> tuple[list[dict], dict]:
    """Rows and result without what differs from run to run."""
    result = run.read_result() or {}
    return rows_without_times(run), {name: value for name, value in result.items() if not name.startswith(CHANGING)}


@pytest.mark.parametrize("part", FAILURES)
def test_a_server_that_fails_changes_nothing_of_the_run_but_one_line(part, begin, fit_args, tmp_path):
    """As the run begins, in its midst, at its end: errors, a key that is refused, and silence."""
    assert main(fit_args) == 0
    expected = lasting(directory_of(fit_args))
    with ExitStack() as stack:
        waiting = {}
        for how in FAILURES[part]:
            server = stack.enter_context(open_server())
            server.failing[part] = how
            seconds = 120 if how == 401 else 1  # one that refuses is heard, the others are given up
            args = [*fit_args, f"--run.root={tmp_path / str(how)}", f"--run.wandb_finish_seconds={seconds}"]
            waiting[how] = directory_of(args), begin(server, args)
        for how, (run, wait) in waiting.items():
            codes, log = wait()
            assert codes == [0], log
            assert lasting(run) == expected
            (said,) = [line for line in log.splitlines() if "W&B" in line and not line.startswith(WITHOUT_FAULT)]
            start = f"vitlight: warning: W&B lacks rows of this run, {run.metrics_path} has them all: "
            assert said.startswith(start)
            assert re.match(FAILURES[part][how], said.removeprefix(start)), said


def test_a_server_that_fails_for_a_while_has_every_row_in_the_end(server, fit, fit_args):
    """Its first answers to rows are errors."""
    server.failing_first["rows"] = 503
    codes, log = fit(server, fit_args, env={"WANDB_X_FILE_STREAM_RETRY_WAIT_MIN_SECONDS": "0.1"})
    assert (codes, "W&B lacks" in log) == ([0], False)
    (shown,) = server.runs.values()
    assert shown.rows == shown_rows(directory_of(fit_args))
    assert server.failing_first == {}

"""Runs stopped by signals at chosen and at random moments: each goes on as if nothing had happened."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest

from tests.training.stopped_runs import args_for, at_moment, run_in, whole_run
from tests.training.test_run import assert_bit_equal, final_state, rows_without_times
from tests.training.zygote import free_port, rank_environment
from vitlight.errors import InputError
from vitlight.training.record import RunDirectory
from vitlight.training.run_settings import RunSettings
from vitlight.training.signals import StopSignals
from vitlight.training.stopping import let_no_other_handle_signals


def signal_at(root: Path, **values) -> list[str]:
    return at_moment("signal_at.SignalAt", root, **values)


def assert_same_run(run: RunDirectory, whole: RunDirectory) -> None:
    assert rows_without_times(run) == rows_without_times(whole)
    left, right = final_state(run), final_state(whole)
    for key in ("state_dict", "optimizer_states", "global_step", "vitlight"):
        assert_bit_equal(left[key], right[key], key)
    assert run.read_result()["status"] == "done"
    assert run.read_result()["top1_count"] == whole.read_result()["top1_count"]


@pytest.fixture(scope="module")
def whole(zygote, tiny_shards, tmp_path_factory) -> RunDirectory:
    root = tmp_path_factory.mktemp("whole")
    return whole_run(zygote, args_for(tiny_shards, root), root)


@pytest.mark.parametrize(
    ("moment", "step", "signum", "stopped_at"),
    [
        ("train", 6, signal.SIGUSR1, 7),
        ("train", 6, signal.SIGINT, 7),
        ("train", 3, signal.SIGTERM, 4),  # where an evaluation is due
        ("fit_val", 4, signal.SIGTERM, 4),
        ("fit_val", 12, signal.SIGTERM, 12),
        ("test", 12, signal.SIGUSR1, 12),
    ],
)
def test_a_signal_stops_at_a_boundary_and_the_same_command_goes_on(
    zygote, whole, tiny_shards, tmp_path, moment, step, signum, stopped_at
):
    log = tmp_path / "log"
    args = [*args_for(tiny_shards, tmp_path), *signal_at(tmp_path, moment=moment, step=step, signum=int(signum))]
    assert zygote.run(args, log) == (130 if signum == signal.SIGINT else 75), log.read_text()
    run = run_in(tmp_path)
    assert f"stopped at step {stopped_at} of 12; the same command goes on\n" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert run.read_result() is None
    assert max(run.checkpoints.glob("*.ckpt")).name == f"step-{stopped_at:09d}.ckpt"
    evaluated = [row["step"] for row in run.rows() if row["event"] == "val"]
    assert evaluated == [due for due in (4, 8, 12) if due < stopped_at or (moment == "test" and due == 12)]
    assert zygote.run(args, log) == 0, log.read_text()
    assert f"resumes at step {stopped_at} of 12" in log.read_text()
    assert_same_run(run, whole)


def test_an_evaluation_left_to_the_resumed_run_can_be_stopped_again(zygote, whole, tiny_shards, tmp_path):
    log, args = tmp_path / "log", args_for(tiny_shards, tmp_path)
    for moment, once in (("fit_val", "first"), ("fit_val", "second")):
        at = signal_at(tmp_path, moment=moment, step=4, once=str(tmp_path / once))
        assert zygote.run([*args, *at], log) == 75, log.read_text()
    assert log.read_text().count("stopped at step 4 of 12") == 2
    assert zygote.run(args, log) == 0, log.read_text()
    assert_same_run(run_in(tmp_path), whole)


def test_before_the_first_step_a_lone_process_ends_at_once(zygote, whole, tiny_shards, tmp_path):
    log = tmp_path / "log"
    args = [*args_for(tiny_shards, tmp_path), *signal_at(tmp_path, moment="setup", step=0, hang_seconds=100)]
    assert zygote.run(args, log) == 75
    assert "stopped by SIGTERM, before the first step; the same command goes on" in log.read_text()
    assert list(run_in(tmp_path).checkpoints.iterdir()) == []
    assert zygote.run(args, log) == 0
    assert_same_run(run_in(tmp_path), whole)


def test_a_process_that_has_just_begun_exits_as_one_that_is_to_be_requeued(zygote, tiny_shards, tmp_path):
    pid = zygote.start(args_for(tiny_shards, tmp_path), tmp_path / "log")
    while not has_handler(pid, signal.SIGTERM):
        time.sleep(0.001)
    os.kill(pid, signal.SIGTERM)
    assert zygote.exit_code(pid) == 75


def has_handler(pid: int, signum: int) -> bool:
    (caught,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & 1 << (signum - 1))


def test_a_signal_to_every_process_leaves_the_workers_alone(zygote, whole, tiny_shards, tmp_path):
    """As Slurm and terminals send it: to the loader's workers, their server and every other helper too."""
    log, args = tmp_path / "log", [*args_for(tiny_shards, tmp_path), "--data.num_workers=2"]
    pid = zygote.start(args, log)
    while rows_so_far(tmp_path) < 1:
        time.sleep(0.005)
    children = processes_of_session(pid)
    assert len(children) >= 4  # the server, its tracker, two workers
    for each in children:
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(each, signum)
    assert zygote.exit_code(pid) == 75, log.read_text()
    assert "stopped at step" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert "Warning" not in log.read_text()
    assert zygote.run(args, log) == 0
    assert_same_run(run_in(tmp_path), whole)


def test_a_killed_run_leaves_no_process(zygote, whole, tiny_shards, tmp_path):
    """Loader workers and the server that they are forked from, which nobody tells."""
    log, args = tmp_path / "log", [*args_for(tiny_shards, tmp_path), "--data.num_workers=2"]
    pid = zygote.start(args, log)
    while rows_so_far(tmp_path) < 1:
        time.sleep(0.005)
    assert len(processes_of_session(pid)) >= 4
    os.kill(pid, signal.SIGKILL)
    assert zygote.exit_code(pid) == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while left := [each for each in processes_of_session(pid) if each != pid]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert zygote.run(args, log) == 0, log.read_text()
    assert_same_run(run_in(tmp_path), whole)


def rows_so_far(root: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in (root / "runs").glob("*/*/metrics.jsonl"))


def processes_of_session(session: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if folder.name.isdecimal() and int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize(("moment", "step", "stopped_at"), [("setup", 0, 0), ("train", 6, 8), ("fit_val", 4, 4)])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    zygote, tiny_shards, tmp_path, tmp_path_factory, moment, step, stopped_at, whole_of_two
):
    log = tmp_path / "log"
    args = [*two_ranks(tiny_shards, tmp_path), *signal_at(tmp_path, moment=moment, step=step, rank=1)]
    assert run_ranks(zygote, args, log) == [75, 75], log.read_text()
    assert f"stopped at step {stopped_at} of 12" in log.read_text()
    assert run_ranks(zygote, args, log) == [0, 0], log.read_text()
    assert_same_run(run_in(tmp_path), whole_of_two)


@pytest.mark.parametrize(
    ("step", "goes_on"), [(2, "from the beginning: no checkpoint was due yet"), (6, "from step 4")]
)
def test_a_stop_without_the_other_rank_says_from_where_the_run_goes_on(
    zygote, whole_of_two, tiny_shards, tmp_path, step, goes_on
):
    """As when a node is lost: its rank is gone, and the others are asked to stop in a step that can't end."""
    log = tmp_path / "log"
    init_args = {"moment": "train", "step": step}
    callbacks = [
        {
            "class_path": "tests.training.signal_at.SignalAt",
            "init_args": {**init_args, "once": str(tmp_path / f"once-{rank}"), "rank": rank, "signum": int(signum)},
        }
        for rank, signum in enumerate((signal.SIGTERM, signal.SIGKILL))
    ]
    args = [*two_ranks(tiny_shards, tmp_path), "--run.checkpoint_every_steps=4"]
    assert run_ranks(zygote, [*args, f"--trainer.callbacks={json.dumps(callbacks)}"], log) == [75, -9], log.read_text()
    assert f"stopped at step {step} of 12 without another rank" in log.read_text()
    assert f"the same command goes on {goes_on}\n" in log.read_text()
    assert run_ranks(zygote, args, log) == [0, 0], log.read_text()
    assert_same_run(run_in(tmp_path), whole_of_two)


def two_ranks(tiny_shards: Path, root: Path) -> list[str]:
    return [*args_for(tiny_shards, root), "--trainer.devices=2", "--trainer.strategy=ddp"]


def run_ranks(zygote, args: list[str], log: Path) -> list[int]:
    port = free_port()
    pids = [zygote.start(args, log, rank_environment(rank, 2, port)) for rank in range(2)]
    return [zygote.exit_code(pid) for pid in pids]


@pytest.fixture(scope="module")
def whole_of_two(zygote, tiny_shards, tmp_path_factory) -> RunDirectory:
    root = tmp_path_factory.mktemp("whole_of_two")
    assert run_ranks(zygote, two_ranks(tiny_shards, root), root / "log") == [0, 0], (root / "log").read_text()
    return run_in(root)


def test_a_second_interrupt_ends_at_once(zygote, tiny_shards, tmp_path):
    log = tmp_path / "log"
    at = signal_at(tmp_path, moment="train", step=6, signum=int(signal.SIGINT), hang_seconds=100)
    pid = zygote.start([*args_for(tiny_shards, tmp_path), *at], log)
    while not (tmp_path / "once").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(pid, signal.SIGINT)
    assert zygote.exit_code(pid) == 130
    assert "stopped by SIGINT, asked again" in log.read_text()


def test_a_step_that_does_not_end_is_not_waited_for_for_ever(zygote, whole, tiny_shards, tmp_path):
    log = tmp_path / "log"
    at = signal_at(tmp_path, moment="train", step=7, hang_seconds=100)
    args = [*args_for(tiny_shards, tmp_path), "--run.rank_timeout_seconds=1"]
    assert zygote.run([*args, *at], log) == 75
    assert "stopped by SIGTERM, no step ended within 1 s of it" in log.read_text()
    assert zygote.run(args, log) == 0
    assert_same_run(run_in(tmp_path), whole)


@pytest.mark.parametrize("names", [["KILL"], ["TERM", "usr1"], []])
def test_signals_that_cannot_ask_for_a_stop_are_refused(names):
    with pytest.raises(InputError, match=r"run\.stop_signals"):
        RunSettings(stop_signals=names)


def test_lightning_handles_no_signal_itself():
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    for owner, name in (
        (trainer._signal_connector, "register_signal_handlers"),
        (trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor"),
    ):
        assert callable(getattr(type(owner), name)), "a private name that has moved"
    let_no_other_handle_signals(trainer)
    before = signal.getsignal(signal.SIGTERM)
    trainer._signal_connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def heeded_sigint():
    """A shell that has put the tests in its background makes them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_that_the_caller_ignores_stays_ignored(heeded_sigint):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals():
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_the_context_leaves_handlers_and_mask_as_they_were(heeded_sigint):
    before = signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    threads = threading.active_count()
    with StopSignals() as stop:
        stop.defer()
        assert {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT} <= signal.pthread_sigmask(signal.SIG_BLOCK, [])
        stop.listen_to(["USR2"], 5.0)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert signal.SIGUSR2 in mask
        assert signal.SIGUSR1 not in mask
        os.kill(os.getpid(), signal.SIGUSR2)
        while stop.signum is None:
            time.sleep(0.001)
        assert (stop.exit_code, stop.urgency) == (75, 2)
    assert before == (signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, []))
    assert threading.active_count() == threads


def test_a_run_that_is_still_held_is_waited_for(tmp_path, capsys):
    run = RunDirectory(tmp_path / "run")
    run.create()
    holder = run.claimed()
    holder.__enter__()
    with (
        pytest.raises(InputError, match=r"in progress in process .*; run\.claim_wait_seconds=0\.2 is how long"),
        run.claimed(0.2),
    ):
        raise AssertionError("held twice")
    threading.Timer(0.3, lambda: holder.__exit__(None, None, None)).start()
    with run.claimed(30.0):
        assert "waiting up to 30 s for it to end" in capsys.readouterr().err

"""Every cell exactly once: with many runners, killed runners, failing cells and stop signals, on real processes."""

import json
import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.sweep import fake_fit
from tests.sweep.conftest import end
from tests.sweep.fake_runner import FIT
from vitlight.errors import InputError
from vitlight.sweep import LocalExecutor, load_sweep, plan_sweep, run_sweep, sweep_status


def is_alive(pid):
    """Whether the process runs; one that has ended and awaits its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def states(sweep_file, root):
    rows = sweep_status(load_sweep(sweep_file), fake_fit.resolve, root)
    return {row["parameters"].get("model.arch", row["run_id"]): row["state"] for row in rows}


def run_here(sweep_file, root, jobs=1):
    executor = LocalExecutor(jobs, FIT)
    return run_sweep(load_sweep(sweep_file), fake_fit.resolve, root, executor=executor, poll_seconds=0.02)


@pytest.fixture(autouse=True)
def children_find_the_tests(monkeypatch, request):
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_cheap_cells_run_first_and_a_second_call_runs_nothing(write_sweep, playground):
    sweep_file = write_sweep({"model.arch": ["ok_3", "ok_1", "ok_2"]})
    first = run_here(sweep_file, playground.root)
    assert [arch for arch, _, _ in playground.events("start")] == ["ok_1", "ok_2", "ok_3"]
    assert (first.num_started, first.num_done, first.exit_code) == (3, 3, 0)
    second = run_here(sweep_file, playground.root)
    assert (second.num_started, second.num_done, second.exit_code) == (0, 3, 0)
    assert len(playground.events("start")) == 3


def test_cells_can_be_added_to_a_directory(write_sweep, playground):
    run_here(write_sweep({"model.arch": ["ok_1", "ok_2"]}), playground.root)
    sweep_file = write_sweep({"model.arch": ["ok_2", "ok_3"]})
    assert run_here(sweep_file, playground.root).num_started == 1
    assert (playground.root / "demo" / "sweep.yaml").read_text() == sweep_file.read_text()
    found = states(sweep_file, playground.root)
    assert Counter(found.values()) == {"done": 2, "other": 1}


def test_output_goes_to_the_cells_log(write_sweep, playground, capfd):
    sweep_file = write_sweep({"model.arch": ["ok_1"]})
    run_here(sweep_file, playground.root)
    cell = load_sweep(sweep_file).cells()[0]
    log = (playground.root / "demo" / "logs" / f"{cell.id}.log").read_text().splitlines()
    assert log[0].startswith("$ vitlight fit --config=base.yaml --model.arch=ok_1 --run.name=demo --run.root=")
    assert log[1].startswith("threads")
    terminal = capfd.readouterr()
    assert "threads" not in terminal.out + terminal.err
    assert "done     model.arch=ok_1" in terminal.out


def test_eight_runners_share_a_directory_without_running_a_cell_twice(write_sweep, playground):
    archs = [f"ok_{cost}" for cost in range(1, 13)]
    sweep_file = write_sweep({"model.arch": archs, "seed_everything": [0, 1]})
    runners = [playground.runner(sweep_file) for _ in range(8)]
    ends = [end(runner) for runner in runners]
    assert [code for code, _ in ends] == [0] * 8, ends
    assert Counter(arch for arch, _, _ in playground.events("start")) == dict.fromkeys(archs, 2)
    assert len({run_id for _, run_id, _ in playground.events("start")}) == 24
    assert sorted(playground.events("end")) == sorted(playground.events("start"))
    assert sum(int(output.rsplit("started ", 1)[1].split()[0]) for _, output in ends) == 24
    assert all("done 24 failed 0" in output for _, output in ends)


def test_jobs_overlap_and_are_at_most_as_many_as_asked(write_sweep, playground):
    sweep_file = write_sweep({"model.arch": ["gated_1", "gated_2", "gated_3"]})
    runner = playground.runner(sweep_file, jobs=2)
    playground.wait_for_events("start", 2)
    found = states(sweep_file, playground.root)
    assert found == {"gated_1": "running", "gated_2": "running", "gated_3": "waiting"}
    playground.open_gate()
    assert end(runner)[0] == 0
    assert [arch for arch, _, _ in playground.events("start")][2] == "gated_3"
    assert len(playground.events("end")) == 3


def test_a_longer_cell_waits_until_the_shorter_one_has_left_the_trunk(write_sweep, playground):
    axes = {"model.schedule.name": ["wsd"], "data.num_train_samples": [200, 100], "model.arch": ["gated_1", "gated_5"]}
    runner = playground.runner(write_sweep(axes), jobs=4)
    started = playground.wait_for_events("start", 2)
    assert sorted(arch for arch, _, _ in started) == ["gated_1", "gated_5"], "one of each trunk"
    left = playground.root / "demo" / "trunks" / "gated_1" / "8"
    left.parent.mkdir(parents=True)
    left.touch()
    assert playground.wait_for_events("start", 3)[2][0] == "gated_1"
    assert len(playground.events("start")) == 3
    playground.open_gate()  # the shorter cell of the other trunk ends, so nothing is to be waited for
    code, output = end(runner)
    assert (code, len(playground.events("end"))) == (0, 4), output


def test_a_killed_runners_child_keeps_its_claim(write_sweep, playground):
    sweep_file = write_sweep({"model.arch": ["ok_1", "gated_2"]})
    first = playground.runner(sweep_file)
    child = playground.wait_for_events("start", 2)[1][2]
    first.kill()
    first.wait()
    assert is_alive(child)
    assert states(sweep_file, playground.root) == {"ok_1": "done", "gated_2": "running"}
    second = playground.runner(sweep_file)
    assert second.stdout.readline() == "waiting for 1 cells that other runners have claimed\n"
    playground.open_gate()
    code, output = end(second)
    assert code == 0
    assert "started 0 done 2 failed 0" in output
    assert len(playground.events("start")) == 2


def test_a_waiting_runner_takes_over_when_runner_and_child_are_killed(write_sweep, playground):
    sweep_file = write_sweep({"model.arch": ["ok_1", "gated_2"]})
    first = playground.runner(sweep_file)
    child = playground.wait_for_events("start", 2)[1][2]
    second = playground.runner(sweep_file)
    assert second.stdout.readline() == "waiting for 1 cells that other runners have claimed\n"
    first.kill()
    os.kill(child, signal.SIGKILL)
    starts = playground.wait_for_events("start", 3)
    assert [arch for arch, _, _ in starts] == ["ok_1", "gated_2", "gated_2"]
    playground.open_gate()
    code, output = end(second)
    assert code == 0
    assert "started 1 done 2 failed 0" in output
    assert len(playground.events("start")) == 3


def test_a_failed_cell_stops_no_other_and_is_tried_again_by_the_next_call(write_sweep, playground):
    sweep_file = write_sweep({"model.arch": ["broken_1", "refused_2", "nan_3", "ok_4"]})
    outcome = run_here(sweep_file, playground.root)
    assert (outcome.exit_code, outcome.num_done, outcome.num_diverged) == (1, 1, 1)
    assert [failure.planned.run.arch for failure in outcome.failures] == ["broken_1", "refused_2"]
    broken, refused = outcome.failures
    assert broken.reason == "exit code 1 and no result: ValueError: broken on purpose"
    assert refused.reason == f"refused by {playground.events('start')[1][2]}"
    assert broken.log.read_text().endswith("ValueError: broken on purpose\n")
    assert states(sweep_file, playground.root) == {
        "broken_1": "failed",
        "refused_2": "failed",
        "nan_3": "diverged",
        "ok_4": "done",
    }
    (playground.root / "repaired").touch()
    again = run_here(sweep_file, playground.root)
    assert (again.num_started, again.num_done, again.num_diverged) == (2, 2, 1)
    assert [failure.reason for failure in again.failures] == [f"refused by {playground.events('start')[-1][2]}"]
    assert states(sweep_file, playground.root)["broken_1"] == "done"


def test_a_cell_killed_under_its_runner_has_failed(write_sweep, playground):
    sweep_file = write_sweep({"model.arch": ["gated_1"]})
    runner = playground.runner(sweep_file)
    os.kill(playground.wait_for_events("start", 1)[0][2], signal.SIGKILL)
    code, output = end(runner)
    assert code == 1
    assert "killed by SIGKILL" in output
    row = sweep_status(load_sweep(sweep_file), fake_fit.resolve, playground.root)[0]
    assert (row["state"], row["reason"]) == ("failed", "killed by SIGKILL")


def test_a_failure_is_not_tried_again_by_a_runner_that_waited_for_the_cell(write_sweep, playground):
    sweep_file = write_sweep({"model.arch": ["doomed_1"]})
    first = playground.runner(sweep_file)
    playground.wait_for_events("start", 1)
    second = playground.runner(sweep_file)
    assert second.stdout.readline() == "waiting for 1 cells that other runners have claimed\n"
    playground.open_gate()
    (first_code, first_output), (second_code, second_output) = end(first), end(second)
    assert (first_code, second_code) == (1, 1)
    assert "started 1 done 0 failed 1" in first_output
    assert "started 0 done 0 failed 1" in second_output
    assert "exit code 1 and no result: ValueError: broken on purpose" in second_output
    assert len(playground.events("start")) == 1
    assert run_here(sweep_file, playground.root).num_started == 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_stop_signal_reaches_the_cells_as_sigterm_and_they_are_awaited(write_sweep, playground, signum, code):
    sweep_file = write_sweep({"model.arch": ["gated_1", "gated_2", "gated_3"]})
    runner = playground.runner(sweep_file, jobs=2)
    children = {pid for _, _, pid in playground.wait_for_events("start", 2)}
    os.killpg(runner.pid, signum)
    assert end(runner)[0] == code
    assert {pid for _, _, pid in playground.events("sigterm")} == children
    assert not any(is_alive(pid) for pid in children)
    assert states(sweep_file, playground.root) == dict.fromkeys(("gated_1", "gated_2", "gated_3"), "waiting")
    assert len(playground.events("start")) == 2
    playground.open_gate()
    assert run_here(sweep_file, playground.root).num_done == 3


def test_a_cell_that_asks_to_be_started_again_is(write_sweep, playground):
    runner = playground.runner(write_sweep({"model.arch": ["gated_1"]}))
    os.kill(playground.wait_for_events("start", 1)[0][2], signal.SIGUSR1)
    playground.wait_for_events("start", 2)
    playground.open_gate()
    code, output = end(runner)
    assert (code, len(playground.events("start")), len(playground.events("end"))) == (0, 2, 1), output
    assert "started 2 done 1 failed 0" in output
    assert re.search(r"stopped  model.arch=gated_1  \w+  to go on", output)


def test_a_second_signal_kills_cells_that_do_not_end(write_sweep, playground):
    sweep_file = write_sweep({"model.arch": ["stubborn_1"]})
    runner = playground.runner(sweep_file)
    child = playground.wait_for_events("start", 1)[0][2]
    os.kill(runner.pid, signal.SIGINT)
    playground.wait_for_events("sigterm", 1)
    assert runner.poll() is None
    assert is_alive(child)
    os.kill(runner.pid, signal.SIGINT)
    code, output = end(runner)
    assert code == 130
    assert not is_alive(child)
    assert "SIGINT: waiting for 1 running cells to end; again to kill them" in output


def test_nothing_runs_when_a_cell_is_invalid(write_sweep, playground):
    sweep_file = write_sweep({"model.arch": ["ok_1", "vit_ti16"]})
    with pytest.raises(InputError, match=r"1 of 2 cells are invalid \(1\); cell 1 \(model.arch=vit_ti16\)"):
        run_here(sweep_file, playground.root)
    assert list(playground.root.iterdir()) == []


def test_an_error_in_the_runner_ends_its_cells_first(write_sweep, playground):
    class FailingExecutor(LocalExecutor):
        def start(self, args, slot, log_path, claim_fd):
            if "--model.arch=ok_2" in args:
                playground.wait_for_events("start", 1)
                raise OSError("no space left on device")
            return super().start(args, slot, log_path, claim_fd)

    sweep = load_sweep(write_sweep({"model.arch": ["gated_1", "ok_2"]}))
    with pytest.raises(OSError, match="no space left"):
        run_sweep(sweep, fake_fit.resolve, playground.root, executor=FailingExecutor(2, FIT))
    assert len(playground.events("sigterm")) == 1
    assert not is_alive(playground.events("start")[0][2])


def test_a_directory_that_cannot_be_made_is_named(write_sweep, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/demo can't be written \(.*\); change --root"):
        run_here(write_sweep({"model.arch": ["ok_1"]}), tmp_path / "file")


def test_an_unreadable_result_is_a_failure_and_is_run_again(write_sweep, playground):
    sweep_file = write_sweep({"model.arch": ["ok_1"]})
    planned = plan_sweep(load_sweep(sweep_file), fake_fit.resolve, playground.root)
    run_dir = planned[0].run.run_dir
    run_dir.mkdir(parents=True)
    (run_dir / "result.json").write_text('{"status": "do')
    assert states(sweep_file, playground.root) == {"ok_1": "failed"}
    assert run_here(sweep_file, playground.root).num_started == 1
    assert json.loads((run_dir / "result.json").read_text())["status"] == "done"

"""Bayesian search: suggestions that several runners share, that no kill repeats or loses, and that find what is good."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.sweep import searched_fit
from tests.sweep.conftest import end
from tests.sweep.engine import engine, require_engine, write_search
from vitlight.errors import InputError
from vitlight.sweep import LocalExecutor, guide, load_sweep, plan_sweep, run_sweep, sweep_status
from vitlight.sweep.guide import open_guide
from vitlight.sweep.search_engine import Observed, suggest
from vitlight.sweep.search_journal import Journal

FIT = (sys.executable, "-m", "tests.sweep.searched_fit")
LR = {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1}
METRIC = {"name": "val/top1", "goal": "maximize"}


@pytest.fixture(autouse=True)
def with_the_engine(monkeypatch, request):
    require_engine()
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def search_file(tmp_path):
    def write(parameters=None, **keys):
        specs = {"model.optimizer.lr": LR} | (parameters or {})
        return write_search(
            tmp_path / "demo.yaml", specs, **({"method": "bayes", "metric": METRIC, "run_cap": 6} | keys)
        )

    return write


def run_here(path, root, seed=None):
    executor = LocalExecutor(1, FIT)
    return run_sweep(load_sweep(path, seed), searched_fit.resolve, root, executor=executor, poll_seconds=0.02)


def journal(root):
    return {path.name: json.loads(path.read_text()) for path in (root / "demo" / "search").glob("*/[0-9]*.json")}


def test_a_suggestion_is_the_engines_and_a_function_of_what_is_known():
    specs = {"model.optimizer.lr": LR}
    cells = [
        Observed({"model.optimizer.lr": rate}, "finished", [searched_fit.accuracy(rate, 9)])
        for rate in (1e-5, 1e-4, 2e-3, 1e-2, 1e-1)
    ]
    before = np.random.get_state()[1].copy()  # noqa: NPY002  what the engine draws from
    found = suggest(specs, METRIC, 0, 5, cells)
    assert found == suggest(specs, METRIC, 0, 5, cells)
    assert found != suggest(specs, METRIC, 1, 5, cells)
    assert 2e-4 < found["model.optimizer.lr"] < 8e-3
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_it_finds_the_rate_that_is_right(search_file, tmp_path):
    outcome = run_here(search_file(run_cap=10), tmp_path)
    assert (outcome.num_done, outcome.num_started) == (10, 10)
    rows = sweep_status(load_sweep(search_file(run_cap=10)), searched_fit.resolve, tmp_path)
    assert max(row["top1"] for row in rows) > 0.85  # half of random searches of ten cells find no more than 0.86
    late = [abs(np.log10(row["parameters"]["model.optimizer.lr"] / searched_fit.RIGHT_RATE)) for row in rows[-4:]]
    assert np.median(late) < 0.7  # of draws, half are further off than 1
    again = run_here(search_file(run_cap=10), tmp_path)
    assert (again.num_done, again.num_started) == (10, 0)


def test_killed_runners_and_agents_lose_and_repeat_nothing(search_file, playground):
    root = playground.root
    (root / "slow").touch()
    path = search_file(run_cap=8)
    words = [sys.executable, "-m", "tests.sweep.search_runner", str(path), str(root), "2"]
    runners = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(3)]
    playground.processes += runners
    playground.wait_for_events("start", 3)
    runners[0].kill()
    playground.wait_for_events("start", 5)
    os.kill(playground.events("start")[-1][2], signal.SIGKILL)
    (root / "slow").unlink()
    codes = [end(runner)[0] for runner in runners[1:]]
    assert set(codes) <= {0, 1}  # 1: whoever saw the killed cell fail
    outcome = run_here(path, root)
    assert (outcome.num_done, outcome.exit_code) == (8, 0)
    assert sorted(journal(root)) == [f"{index:05d}.json" for index in range(8)]
    ended = [run_id for _, run_id, _ in playground.events("end")]
    assert len(ended) == len(set(ended)) == 8
    assert [row["state"] for row in sweep_status(load_sweep(path), searched_fit.resolve, root)] == ["done"] * 8


def test_a_runner_makes_what_is_missing_of_a_suggestion_and_takes_what_is_there(search_file, tmp_path):
    sweep = load_sweep(search_file())
    planned = plan_sweep(sweep, searched_fit.resolve, tmp_path)
    assert [item.cell.index for item in planned] == [0, 1]
    assert not (tmp_path / "demo").exists()
    one = open_guide(sweep, planned, searched_fit.resolve, tmp_path)
    other = open_guide(sweep, planned, searched_fit.resolve, tmp_path)
    third = one.more(is_idle=True)
    assert [item.cell.index for item in third] == [2]
    assert other.more(is_idle=True) == third
    assert [item.cell.index for item in other.more(is_idle=True)] == [3]
    assert [item.cell.index for item in one.more(is_idle=False)] == [3]
    assert one.more(is_idle=False) == []
    again = plan_sweep(sweep, searched_fit.resolve, tmp_path)
    assert [item.run.run_id for item in again] == [item.run.run_id for item in one.planned]
    while one.more(is_idle=True):
        pass
    assert (len(one.planned), one.has_more) == (6, False)


def write_ended(planned, status, values=()):
    planned.run.run_dir.mkdir(parents=True)
    rows = "".join(json.dumps({"val/top1": value}) + "\n" for value in values)
    (planned.run.run_dir / "metrics.jsonl").write_text(rows)
    (planned.run.run_dir / "result.json").write_text(json.dumps({"status": status, "reason": None}))


def test_what_was_suggested_while_a_runner_planned_its_cells_is_run_by_it_and_is_no_failure(search_file, tmp_path):
    sweep = load_sweep(search_file())
    planned = plan_sweep(sweep, searched_fit.resolve, tmp_path)
    first = open_guide(sweep, planned, searched_fit.resolve, tmp_path)
    while len(first.planned) < 5:
        first.more(is_idle=True)
    for item, value in zip(first.planned, (0.1, 0.2, 0.5, 0.3, 0.4), strict=True):
        write_ended(item, "done", [value])
    late = open_guide(sweep, planned, searched_fit.resolve, tmp_path)
    assert late.has_more
    assert late.more(is_idle=True) == first.planned[2:]
    (last,) = late.more(is_idle=True)
    values = zip(first.planned, (0.1, 0.2, 0.5, 0.3, 0.4), strict=True)
    cells = [Observed(item.cell.parameters, "finished", [value]) for item, value in values]
    assert last.cell.parameters == suggest(sweep.search.specs, METRIC, 0, 5, cells)
    assert ([item.cell.index for item in late.planned], late.has_more) == ([0, 1, 2, 3, 4, 5], False)
    assert late.take_lines() == []


def test_a_suggestion_whose_run_is_another_cells_counts_as_that(search_file, tmp_path, monkeypatch):
    space = {"trainer.devices": {"min": 1, "max": 100}, "model.optimizer.lr": {"value": 0.1}}  # one run, anywhere in it
    sweep = load_sweep(search_file(space))
    (only,) = planned = plan_sweep(sweep, searched_fit.resolve, tmp_path)
    write_ended(only, "diverged", [0.1])
    told = []
    monkeypatch.setattr(guide, "suggest", lambda *words: told.append(words[-1]) or suggest(*words))
    joined = open_guide(sweep, planned, searched_fit.resolve, tmp_path)
    assert joined.more(is_idle=True) == []
    suggested = [each["parameters"] for _, each in sorted(journal(tmp_path).items())]
    assert [(cell.parameters, cell.history, cell.name) for cell in told[0]] == [
        (parameters, (0.1,), only.run.run_id) for parameters in suggested[:2]
    ]
    assert len(suggested) == 4  # a cell that failed, another suggestion of it, and two that found no new one
    assert joined.take_lines()[-1] == "no more cells are suggested: 3 have failed, and none has a result"
    assert joined.planned == [only]


def test_a_search_that_another_runner_began_with_another_seed_meanwhile_is_refused(search_file, tmp_path):
    sweep = load_sweep(search_file())
    planned = plan_sweep(sweep, searched_fit.resolve, tmp_path)
    Journal(tmp_path / "demo", sweep.search).begin(5)
    with pytest.raises(InputError, match=r"has just begun this search with --search-seed 5; try again"):
        open_guide(sweep, planned, searched_fit.resolve, tmp_path)


def test_a_runner_that_has_written_one_of_the_first_two_hides_none(search_file, tmp_path):
    sweep = load_sweep(search_file())
    both = plan_sweep(sweep, searched_fit.resolve, tmp_path)
    begun = Journal(tmp_path / "demo", sweep.search)
    begun.begin(0)
    begun.add(sweep.search.blind(0))
    assert plan_sweep(sweep, searched_fit.resolve, tmp_path) == both
    open_guide(sweep, both, searched_fit.resolve, tmp_path)
    assert sorted(journal(tmp_path)) == ["00000.json", "00001.json"]


def test_the_engine_hears_of_failed_and_stopped_cells_what_wandb_tells_it(search_file, tmp_path):
    """Results, ends and failures of three cells, against the engine called by hand."""
    sweep = load_sweep(search_file())
    planned = plan_sweep(sweep, searched_fit.resolve, tmp_path)
    runner = open_guide(sweep, planned, searched_fit.resolve, tmp_path)
    runner.more(is_idle=True)
    told = [("done", [0.2, 0.5, 0.4]), ("stopped", [0.3]), ("diverged", [])]
    for item, (status, values) in zip(runner.planned, told, strict=True):
        write_ended(item, status, values)
    found = runner.more(is_idle=True)[0].cell.parameters
    states = ("finished", "killed", "failed")
    runs = [
        engine("run").SweepRun(
            state=state,
            config={"model.optimizer.lr": {"value": item.cell.parameters["model.optimizer.lr"]}},
            sampledHistory=[{"val/top1": value} for value in values],
        )
        for item, state, (_, values) in zip(runner.planned, states, told, strict=False)
    ]
    cells = [
        Observed(item.cell.parameters, state, values)
        for item, state, (_, values) in zip(runner.planned, states, told, strict=False)
    ]
    assert found == suggest(sweep.search.specs, METRIC, 0, 3, cells)
    config = {"method": "bayes", "metric": METRIC, "parameters": sweep.search.specs}
    filled = engine("bayes_search").bayes_baseline_validate_and_fill(config)
    y = engine("bayes_search")._construct_gp_data(runs, filled)[3]
    assert y.tolist() == [-0.5, -0.2, -0.2]  # what has no result counts as the worst that any cell logged
    filled["metric"]["impute"] = "best"
    assert engine("bayes_search")._construct_gp_data(runs, filled)[3].tolist() == [-0.5, -0.3, 0.0]


def test_suggestions_that_cannot_run_are_left_out_and_told(search_file, tmp_path):
    decay = {"distribution": "uniform", "min": 0.0, "max": 1.5}  # above 1 it is refused
    path = search_file({"model.optimizer.weight_decay": decay}, run_cap=12)
    with pytest.raises(InputError, match=r"1 of 2 cells are invalid \(0\); .* is above 1"):
        run_here(path, tmp_path)  # of those that are known beforehand, nothing runs
    outcome = run_here(path, tmp_path, seed=4)
    refused = [cell for cell in journal(tmp_path).values() if cell["refused"]]
    assert 1 <= len(refused) < 12
    assert all("is above 1" in cell["refused"] for cell in refused)
    assert (outcome.num_done, outcome.num_started) == (12 - len(refused), 12 - len(refused))


def test_where_all_cells_fail_no_more_are_suggested(search_file, playground, capfd):
    path = search_file({"model.arch": {"value": "fails_1"}}, run_cap=20)
    outcome = run_here(path, playground.root)
    assert (len(outcome.failures), outcome.exit_code) == (3, 1)
    assert "no more cells are suggested: 3 have failed, and none has a result" in capfd.readouterr().out


def test_a_metric_that_nobody_logs_is_told(search_file, tmp_path, capfd):
    run_here(search_file(metric=METRIC | {"name": "val/topp1"}, run_cap=3), tmp_path)
    assert "never logged the metric val/topp1; did you mean val/top1?" in capfd.readouterr().out


def test_few_combinations_are_tried_once_each(search_file, tmp_path):
    outcome = run_here(search_file({"model.optimizer.lr": {"values": [1e-4, 1e-3, 1e-2]}}), tmp_path)
    assert outcome.num_started == len({str(cell["parameters"]) for cell in journal(tmp_path).values()}) == 3
    assert len(journal(tmp_path)) == 6


def test_two_seeds_in_one_directory_are_refused(search_file, tmp_path):
    run_here(search_file(run_cap=2), tmp_path)
    with pytest.raises(InputError, match=r"--search-seed 1, but .* has the search of --search-seed 0"):
        plan_sweep(load_sweep(search_file(), 1), searched_fit.resolve, tmp_path)

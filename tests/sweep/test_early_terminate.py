"""W&B's hyperband, locally: which cells fall behind, how they end, and that they stay ended."""

import json
import sys

import pytest

from tests.sweep import searched_fit
from tests.sweep.engine import require_engine, write_search
from vitlight.errors import InputError
from vitlight.sweep import LocalExecutor, load_sweep, plan_sweep, run_sweep, sweep_status
from vitlight.sweep.claims import Claims
from vitlight.sweep.control import clear
from vitlight.sweep.guide import open_guide
from vitlight.sweep.metric_history import MetricHistory
from vitlight.sweep.search_engine import Observed, ended_early
from vitlight.training.end_requests import end_request_path, read_end_request

FIT = (sys.executable, "-m", "tests.sweep.searched_fit")
METRIC = {"name": "val/top1", "goal": "maximize"}
RATES = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
RULE = {"type": "hyperband", "min_iter": 2, "eta": 3}


@pytest.fixture(autouse=True)
def with_the_engine(monkeypatch, request):
    require_engine()
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))


def test_who_falls_behind_is_what_the_engines_own_example_says():
    """Of `sweeps` 0.2.0, hyperband_stopping.py: brackets at 1 and 2 of 5 values, half go on at each."""
    losses = {"a": [10, 9], "b": [10, 10], "c": [10, 8, 8], "d": [10, 7, 7], "e": [10, 6, 6]}
    states = dict.fromkeys("bcd", "running") | dict.fromkeys("ae", "finished")
    cells = [Observed({}, states[name], values, name=name) for name, values in losses.items()]
    rule = {"type": "hyperband", "max_iter": 5, "eta": 2, "s": 2}
    reasons = ended_early(rule, {"name": "loss", "goal": "minimize"}, cells)
    assert set(reasons) == {"b", "c"}
    assert reasons["b"] == "hyperband: loss is 10 at best after 2 values; the best 1 in 2 of the cells had 8 at value 2"
    negated = [Observed({}, cell.state, [-value for value in cell.history], name=cell.name) for cell in cells]
    assert set(ended_early(rule, {"name": "loss", "goal": "maximize"}, negated)) == {"b", "c"}


@pytest.mark.parametrize("method", ["grid", "random"])
def test_cells_that_fall_behind_end_early_and_stay_ended(playground, method, capfd):
    root = playground.root
    (root / "slow").touch()
    how = {"method": "grid"} if method == "grid" else {"method": "random", "run_cap": len(RATES)}
    parameters = {"model.optimizer.lr": {"values": RATES}}
    path = write_search(root / "demo.yaml", parameters, metric=METRIC, early_terminate=RULE, **how)
    executor = LocalExecutor(5, FIT)
    outcome = run_sweep(load_sweep(path), searched_fit.resolve, root, executor=executor, poll_seconds=0.02)
    assert outcome.exit_code == 0
    assert outcome.num_done + outcome.num_ended_early == 5
    rows = {
        row["parameters"]["model.optimizer.lr"]: row
        for row in sweep_status(load_sweep(path), searched_fit.resolve, root)
    }
    assert rows[1e-3]["state"] == "done"
    assert rows[1e-5]["state"] == rows[1e-1]["state"] == "stopped"
    assert rows[1e-5]["reason"].startswith("hyperband: val/top1 is 0.")
    assert rows[1e-5]["top1"] is None
    assert rows[1e-5]["samples_seen"] < 10 * searched_fit.NUM_VALUES
    out = capfd.readouterr().out
    assert "ends early  model.optimizer.lr=1e-05" in out
    assert "stopped  model.optimizer.lr=1e-05" in out
    again = run_sweep(load_sweep(path), searched_fit.resolve, root, executor=executor, poll_seconds=0.02)
    assert (again.num_started, again.num_done, again.num_ended_early) == (0, outcome.num_done, outcome.num_ended_early)


def test_a_cell_that_was_ended_early_can_be_had_run_to_its_end(tmp_path):
    path = write_search(
        tmp_path / "demo.yaml",
        {"model.optimizer.lr": {"values": RATES[:2]}},
        method="grid",
        metric=METRIC,
        early_terminate=RULE,
    )
    sweep = load_sweep(path)
    first, _ = planned = plan_sweep(sweep, searched_fit.resolve, tmp_path)
    for item, status in zip(planned, ("stopped", "done"), strict=True):
        item.run.run_dir.mkdir(parents=True)
        (item.run.run_dir / "result.json").write_text(json.dumps({"status": status, "reason": "hyperband: ..."}))
        rows = json.dumps({"val/top1": 0.95}) + "\n"
        (item.run.run_dir / "metrics.jsonl").write_text(rows * searched_fit.NUM_VALUES)
    end_request_path(first.run.run_dir).write_text("hyperband: ...\n")
    (tmp_path / "demo" / "claims").mkdir()
    with Claims() as claims:
        assert clear(first, claims, from_scratch=False)
    assert [path.name for path in sorted(first.run.run_dir.glob("*.1.*"))] == ["end_early.1.txt", "result.1.json"]
    (tmp_path / "slow").touch()
    outcome = run_sweep(sweep, searched_fit.resolve, tmp_path, executor=LocalExecutor(1, FIT), poll_seconds=0.02)
    assert (outcome.num_started, outcome.num_done, outcome.num_ended_early) == (1, 2, 0)


def test_only_cells_that_have_no_result_are_asked_and_each_once(write_sweep, tmp_path):
    sweep = load_sweep(write_sweep({"model.optimizer.lr": RATES}, metric=METRIC, early_terminate=RULE))
    planned = plan_sweep(sweep, searched_fit.resolve, tmp_path)
    guide = open_guide(sweep, planned, searched_fit.resolve, tmp_path)
    guide.look()
    for item, value in zip(planned, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
        item.run.run_dir.mkdir(parents=True)
        (item.run.run_dir / "metrics.jsonl").write_text(json.dumps({"val/top1": value}) + "\n")
        with (item.run.run_dir / "metrics.jsonl").open("a") as file:
            file.write(
                "".join(json.dumps({"val/top1": value, "train/loss": 1.0}) + "\n" for _ in range(2)) + '{"val/top1'
            )
    (planned[0].run.run_dir / "result.json").write_text('{"status": "done"}')
    guide.look()
    asked = [item.cell.index for item in planned if read_end_request(item.run.run_dir)]
    assert asked == [1, 2]  # of five, int(5 / 3) are better than the threshold, which itself goes on
    assert len(guide.take_lines()) == 2
    for item in planned:
        end_request_path(item.run.run_dir).unlink(missing_ok=True)
    guide.look()
    assert not any(read_end_request(item.run.run_dir) for item in planned)  # nothing was logged since
    assert guide.take_lines() == []


def test_a_record_that_is_set_back_is_read_anew(tmp_path):
    history = MetricHistory(tmp_path, "val/top1")
    assert not history.refresh()
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"train/loss": 2}\n{"val/top1": 0.5}\n{"val/top1": null}\n{"val/top1": 0.6}\n{"val/')
    assert history.refresh()
    assert (history.values, history.names) == ((0.5, 0.6), {"train/loss", "val/top1"})
    assert not history.refresh()
    path.write_text('{"train/loss": 2}\n{"val/top1": 0.5}\n')
    assert history.refresh()
    assert history.values == (0.5,)


def test_without_the_engine_nothing_of_a_grid_with_early_ends_is_begun(write_sweep, tmp_path, monkeypatch):
    sweep = load_sweep(write_sweep({"model.optimizer.lr": RATES}, metric=METRIC, early_terminate=RULE))
    for name in [name for name in sys.modules if name.partition(".")[0] == "sweeps"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sweeps", None)
    with pytest.raises(InputError, match=r"early_terminate need W&B's engine; sweeps is missing: pip install"):
        run_sweep(sweep, searched_fit.resolve, tmp_path / "runs", executor=LocalExecutor(1, FIT))
    assert not (tmp_path / "runs").exists()


def test_a_grid_without_early_ends_needs_no_guide(write_sweep, tmp_path):
    sweep = load_sweep(write_sweep({"model.optimizer.lr": RATES}))
    assert open_guide(sweep, plan_sweep(sweep, searched_fit.resolve, tmp_path), searched_fit.resolve, tmp_path) is None

"""Random search: the same cells whoever draws them, from W&B's distributions, planned before anything runs."""

import json
import sys

import numpy as np
import pytest
from scipy import stats

from tests.sweep import searched_fit
from tests.sweep.engine import engine, require_engine, write_search
from vitlight.errors import InputError
from vitlight.sweep import LocalExecutor, load_sweep, plan_sweep, run_sweep, sweep_status
from vitlight.sweep.search_engine import draw

FIT = (sys.executable, "-m", "tests.sweep.searched_fit")
LR = {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1}


@pytest.fixture(autouse=True)
def with_the_engine(monkeypatch, request):
    require_engine()
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))


@pytest.fixture
def search_file(tmp_path):
    """A random search of five cells over a rate; other parameters and keys may be added."""

    def write(parameters=None, **keys):
        specs = {"model.optimizer.lr": LR} | (parameters or {})
        return write_search(tmp_path / "demo.yaml", specs, **({"method": "random", "run_cap": 5} | keys))

    return write


def rates(cells):
    return [cell.parameters["model.optimizer.lr"] for cell in cells]


def test_a_cell_is_a_function_of_seed_and_number(search_file):
    sweep = load_sweep(search_file())
    assert rates(load_sweep(search_file(run_cap=9)).cells())[:5] == rates(sweep.cells())
    assert [cell.index for cell in sweep.cells()] == [0, 1, 2, 3, 4]
    assert not set(rates(load_sweep(search_file(), search_seed=1).cells())) & set(rates(sweep.cells()))
    both = load_sweep(search_file({"data.seed": {"min": 0, "max": 9}})).cells()
    assert rates(both) == rates(sweep.cells())  # another parameter changes none of its draws
    assert sweep.cells()[0].args[-1] == f"--model.optimizer.lr={rates(sweep.cells())[0]}"
    assert sweep.cells()[0].label == f"model.optimizer.lr={rates(sweep.cells())[0]}"


@pytest.mark.parametrize(
    "spec",
    [
        {"distribution": "uniform", "min": -1.0, "max": 3.0},
        LR,
        {"distribution": "inv_log_uniform_values", "min": 0.5, "max": 2.0},
        {"distribution": "normal", "mu": 2.0, "sigma": 0.5},
        {"distribution": "log_normal", "mu": 0.0, "sigma": 1.0},
        {"distribution": "beta", "a": 2.0, "b": 3.0},
    ],
    ids=lambda spec: spec["distribution"],
)
def test_draws_follow_the_distribution(spec):
    values = np.array([draw({"x": spec}, 7, index)["x"] for index in range(400)])
    hyperparameter = engine("params").HyperParameter("x", spec)
    assert stats.kstest(np.sort(hyperparameter.cdf(values)), "uniform").pvalue > 0.01
    if "min" in spec:
        assert spec["min"] <= values.min() and values.max() <= spec["max"]
    assert all(type(value) is float and len(f"{value:e}".split("e")[0].rstrip("0")) <= 8 for value in values.tolist())


def test_whole_numbers_and_listed_values_stay_what_they_are():
    specs = {
        "batch": {"distribution": "q_log_uniform_values", "min": 8, "max": 512, "q": 8},
        "layers": {"distribution": "int_uniform", "min": 1, "max": 3},
        "model": {
            "distribution": "categorical_w_probabilities",
            "values": [{"arch": "a", "lr": 0.1}, {"arch": "b"}],
            "probabilities": [0.8, 0.2],
        },
    }
    drawn = [draw(specs, 0, index) for index in range(300)]
    assert all(type(each["batch"]) is int and each["batch"] % 8 == 0 for each in drawn)
    assert {each["layers"] for each in drawn} == {1, 2, 3}
    share = sum(each["model"] == {"arch": "a", "lr": 0.1} for each in drawn) / 300
    assert abs(share - 0.8) < 3 * (0.8 * 0.2 / 300) ** 0.5


def test_no_cell_is_drawn_twice(tmp_path):
    parameters = {"data.seed": {"values": [1, 2]}, "model.optimizer.lr": {"values": [0.1, 0.2, 0.3]}}
    cells = load_sweep(write_search(tmp_path / "demo.yaml", parameters, method="random", run_cap=6)).cells()
    assert len({tuple(cell.parameters.values()) for cell in cells}) == 6


def test_the_directory_keeps_the_seed(search_file, tmp_path):
    path = search_file()
    executor = LocalExecutor(2, FIT)
    outcome = run_sweep(load_sweep(path, 3), searched_fit.resolve, tmp_path, executor=executor, poll_seconds=0.05)
    assert (outcome.num_done, outcome.num_started) == (5, 5)
    rows = sweep_status(load_sweep(path), searched_fit.resolve, tmp_path)
    assert [row["state"] for row in rows] == ["done"] * 5
    with pytest.raises(InputError) as caught:
        plan_sweep(load_sweep(path, 4), searched_fit.resolve, tmp_path)
    assert str(caught.value) == (
        f"--search-seed 4, but {tmp_path / 'demo'} has the search of --search-seed 3; leave it out, or give the sweep "
        "another name"
    )
    more = search_file(run_cap=7)
    outcome = run_sweep(load_sweep(more), searched_fit.resolve, tmp_path, executor=executor, poll_seconds=0.05)
    assert (outcome.num_done, outcome.num_started) == (7, 2)
    other_space = load_sweep(search_file({"model.optimizer.lr": LR | {"max": 1.0}}), 4)
    assert len(plan_sweep(other_space, searched_fit.resolve, tmp_path)) == 5


def test_draws_that_are_one_run_are_one_cell(search_file, tmp_path):
    sweep = load_sweep(search_file({"trainer.devices": {"min": 1, "max": 100}, "model.optimizer.lr": {"value": 0.1}}))
    planned = plan_sweep(sweep, searched_fit.resolve, tmp_path)
    assert (len(sweep.cells()), [item.cell.index for item in planned]) == (5, [0])


def test_without_the_engine_one_line_says_what_to_install(search_file, monkeypatch):
    path = search_file()
    for name in [name for name in sys.modules if name.partition(".")[0] == "sweeps"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sweeps", None)
    from vitlight.sweep import search_engine

    search_engine._parameter.cache_clear()
    with pytest.raises(InputError) as caught:
        load_sweep(path)
    assert str(caught.value).endswith("sweeps is missing: pip install 'vitlight[search]'")


def test_the_command_line_plans_a_search(search_file, tiny_shards, tmp_path, capsys):
    from tests.conftest import fit_args
    from vitlight.cli import main

    command = [word for word in fit_args.__wrapped__(tiny_shards, tmp_path) if not word.startswith("--run.name")]
    path = search_file(command=["vitlight", *command, "${args}"], run_cap=2)
    assert main(["sweep", "plan", str(path), "--json", "--search-seed", "5"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["parameters"] for row in rows] == [cell.parameters for cell in load_sweep(path, 5).cells()]
    assert not (tmp_path / "runs").exists()
    assert main(["sweep", "plan", str(path), "--budget", "1e9", "--out", str(tmp_path / "less.yaml")]) == 2
    assert "is a search, of which no smaller one can be written; lower its run_cap" in capsys.readouterr().err

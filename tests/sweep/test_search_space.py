"""What a sweep file may say of a search: W&B's distributions, run_cap and early_terminate, and how they can be wrong."""

import pytest
import yaml

from tests.sweep.engine import engine, require_engine
from vitlight.errors import InputError
from vitlight.sweep import load_sweep

LR = {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}


@pytest.fixture
def load(tmp_path):
    def load(parameters, **keys):
        content = {
            "method": "random",
            "run_cap": 3,
            "command": ["vitlight", "fit", "${args}"],
            "parameters": parameters,
        }
        path = tmp_path / "search.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in (content | keys).items() if value is not None}))
        return load_sweep(path)

    return load


@pytest.mark.parametrize(
    ("spec", "complete"),
    [
        ({"min": 1, "max": 8}, {"distribution": "int_uniform", "min": 1, "max": 8}),
        ({"min": 1, "max": 8.5}, {"distribution": "uniform", "min": 1, "max": 8.5}),
        ({"distribution": "normal"}, {"distribution": "normal", "mu": 0.0, "sigma": 1.0}),
        (
            {"distribution": "q_uniform", "min": 0, "max": 8, "q": 2},
            {"distribution": "q_uniform", "min": 0, "max": 8, "q": 2},
        ),
        ({"values": [1, 2]}, {"distribution": "categorical", "values": [1, 2]}),
        ({"values": [3]}, {"distribution": "constant", "value": 3}),
        (
            {"values": [1, 2], "probabilities": [0.25, 0.75]},
            {"distribution": "categorical_w_probabilities", "values": [1, 2], "probabilities": [0.25, 0.75]},
        ),
    ],
)
def test_a_distribution_is_what_wandb_takes_it_for(load, spec, complete):
    hyperparameter = engine("params").HyperParameter
    sweep = load({"lr": LR, "model": {"parameters": {"x": spec}}})
    assert sweep.search.specs == {"lr": LR, "model.x": complete}
    its, ours = hyperparameter("x", spec), hyperparameter("x", complete)
    if complete["distribution"] == "constant":
        assert (its.ppf(0.3), ours.ppf(0.3)) == (3, 3)
    else:
        assert (its.type, {**its.config}) == (ours.type, {**ours.config}) == (ours.type, complete)


def test_a_grid_lists_the_ranges_that_wandb_lists(load):
    grid_search = engine("grid_search").grid_search_next_runs
    parameters = {"a": {"min": 2, "max": 4}, "b": {"distribution": "q_uniform", "min": 0.5, "max": 2.1, "q": 0.5}}
    sweep = load(parameters, method="grid", run_cap=None)
    theirs = grid_search([], {"method": "grid", "parameters": parameters}, n=100)[:-1]
    assert [tuple(cell.parameters.values()) for cell in sweep.cells()] == [
        (run.config["a"]["value"], run.config["b"]["value"]) for run in theirs
    ]
    assert len(sweep.cells()) == 3 * 4
    assert [cell.parameters for cell in load(parameters, method="grid", run_cap=5).cells()] == [
        cell.parameters for cell in sweep.cells()[:5]
    ]


@pytest.mark.parametrize(
    ("parameters", "keys", "message"),
    [
        ({"lr": LR}, {"run_cap": None}, "method: random needs run_cap, the number of cells"),
        ({"lr": LR}, {"run_cap": 0}, "run_cap is 0; it is a number of cells"),
        ({"lr": LR}, {"method": "bayes"}, "method: bayes searches by the metric; write metric: {name: val/top1"),
        ({"lr": LR}, {"metric": {"name": "m", "impute": "best"}}, "write metric: {name: val/top1, goal: maximize}"),
        (
            {"lr": LR},
            {"method": "bayes", "metric": {"name": "m", "impute": "mean"}},
            "metric.impute is 'mean'; it must be worst, best or latest",
        ),
        ({"lr": {"value": 1}}, {}, "method: random has nothing to search: every parameter has one value"),
        ({"a": {"values": [1, 2]}}, {}, "run_cap is 3, but its parameters have 2 combinations"),
        ({"lr": LR | {"min": 0}}, {}, "lr has min 0; it must be above 0 for log_uniform_values"),
        ({"lr": LR | {"min": "1e-4"}}, {}, "lr has min '1e-4', which is text; YAML reads 1.0e-3"),
        ({"lr": LR | {"min": 0.1}}, {}, "lr has min 0.1, which is not below its max 0.01"),
        ({"lr": LR | {"min": True}}, {}, "lr has min True; it must be a finite number"),
        ({"lr": LR | {"q": 2}}, {}, "lr has 'q', which log_uniform_values doesn't take; it takes min, max"),
        ({"lr": LR | {"distribution": "log_uniform"}}, {}, "limits are exponents of e; write log_uniform_values"),
        ({"lr": LR | {"distribution": "loguniform"}}, {}, "distribution 'loguniform'; did you mean "),
        ({"lr": {"distribution": "int_uniform", "min": 1, "max": 2.5}}, {}, "limits of int_uniform are whole numbers"),
        ({"lr": {"min": 1}}, {}, "lr has no max; uniform needs min and max"),
        ({"lr": {"distribution": "normal", "sigma": 0}}, {}, "lr has sigma 0; it must be above 0"),
        ({"lr": {"values": [1, 2], "min": 1}}, {}, "lr has 'min' beside its values; keep one of them"),
        ({"lr": {"values": [1, 2], "probabilities": [1]}}, {}, "a number from 0 to 1 for each of its 2 values"),
        ({"lr": {"values": [1, 2], "probabilities": [0.5, 0.6]}}, {}, "probabilities that sum to 1.1, not to 1"),
        (
            {"lr": {"values": [1, 2], "probabilities": [0.5, 0.5]}},
            {"method": "bayes", "metric": {"name": "m"}},
            "lr has probabilities, which method bayes can't use",
        ),
        ({"lr": LR}, {"method": "grid"}, "lr has distribution log_uniform_values, which a grid can't list"),
        ({"lr": LR}, {"early_terminate": {"type": "median"}}, "early_terminate is {'type': 'median'}; write early_"),
        ({"lr": LR}, {"early_terminate": {"type": "hyperband", "min_iter": 1}}, "compares values of the metric"),
        ({"lr": LR}, {"early_terminate": {"type": "hyperband"}}, "early_terminate has type; write early_terminate"),
        ({"lr": LR}, {"early_terminate": {"type": "hyperband", "max_iter": 9}}, "has max_iter, type; write"),
        (
            {"lr": LR},
            {"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}},
            "eta 1; it is a number above 1",
        ),
        (
            {"lr": LR},
            {"early_terminate": {"type": "hyperband", "max_iter": 2, "s": 1}},
            "max_iter 2 below eta 3, so it looks at no value",
        ),
        ({"lr": LR}, {"early_terminate": {"type": "hyperband", "miniter": 1}}, "has 'miniter'; did you mean min_iter"),
    ],
)
def test_a_wrong_search_is_refused_in_one_line(load, parameters, keys, message):
    require_engine()
    with pytest.raises(InputError) as caught:
        load(parameters, **keys)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_grid_draws_nothing_that_a_seed_could_change(load, tmp_path):
    load({"a": {"values": [1, 2]}}, method="grid", run_cap=None)
    with pytest.raises(InputError, match="--search-seed 3 is about method: random and bayes"):
        load_sweep(tmp_path / "search.yaml", search_seed=3)

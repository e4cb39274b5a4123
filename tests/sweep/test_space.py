"""Sweep files: the grid and its order, and every way in which a file can be wrong."""

import subprocess
import sys

import pytest

from vitlight.errors import InputError
from vitlight.sweep import load_sweep

SWEEP = """
name: quickstart
method: grid
metric: {name: val/top1, goal: maximize}
command: ["${env}", vitlight, fit, --config=experiments/base.yaml, "${args}"]
parameters:
  seed_everything: {values: [0, 1]}
  model.arch: {values: [vit_s16, vit_ti16]}
  model.lr: {value: 1.0e-3}
"""


def load(tmp_path, text):
    path = tmp_path / "some-file.yaml"
    path.write_text(text)
    return load_sweep(path)


def test_the_grid_is_sorted_by_name_and_the_last_name_varies_fastest(tmp_path):
    sweep = load(tmp_path, SWEEP)
    assert (sweep.name, sweep.metric) == ("quickstart", {"name": "val/top1", "goal": "maximize"})
    assert list(sweep.parameters) == ["model.arch", "model.lr", "seed_everything"]
    cells = sweep.cells()
    assert [tuple(cell.parameters.values()) for cell in cells] == [
        ("vit_s16", 0.001, 0),
        ("vit_s16", 0.001, 1),
        ("vit_ti16", 0.001, 0),
        ("vit_ti16", 0.001, 1),
    ]
    assert [cell.index for cell in cells] == [0, 1, 2, 3]
    assert cells[1].args == (
        "fit",
        "--config=experiments/base.yaml",
        "--model.arch=vit_s16",
        "--model.lr=0.001",
        "--seed_everything=1",
    )
    assert cells[1].label == "model.arch=vit_s16 seed_everything=1"


def test_cells_are_the_same_every_time_and_their_ids_depend_on_arguments_alone(tmp_path):
    cells = load(tmp_path, SWEEP).cells()
    assert load(tmp_path, SWEEP).cells() == cells
    assert len({cell.id for cell in cells}) == 4
    more = load(tmp_path, SWEEP.replace("[0, 1]", "[7, 0, 1]").replace("quickstart", "other")).cells()
    assert {cell.id for cell in cells} < {cell.id for cell in more}
    assert all(len(cell.id) == 10 and int(cell.id, 16) >= 0 for cell in cells)


def test_nested_parameters_become_dotted_names(tmp_path):
    nested = """
    method: grid
    command: [vitlight, fit, "${args}"]
    parameters:
      model:
        parameters:
          arch: {values: [a, b]}
          duration: {parameters: {epochs: {value: 3, distribution: constant}}}
      data.seed: {values: [true, 1, "x"], distribution: categorical}
    """
    sweep = load(tmp_path, nested)
    assert sweep.name == "some-file"
    assert sweep.parameters == {"data.seed": (True, 1, "x"), "model.arch": ("a", "b"), "model.duration.epochs": (3,)}
    assert sweep.cells()[3].args == ("fit", "--data.seed=1", "--model.arch=b", "--model.duration.epochs=3")


def test_a_single_cell_is_named_by_all_its_parameters(tmp_path):
    sweep = load(tmp_path, SWEEP.replace("[0, 1]", "[0]").replace("[vit_s16, vit_ti16]", "[vit_s16]"))
    assert [cell.label for cell in sweep.cells()] == ["model.arch=vit_s16 model.lr=0.001 seed_everything=0"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("method: grid", "method: random", "method: random needs run_cap, the number of cells"),
        ("method: grid", "method: gird", "method is 'gird'; it is one of grid, random, bayes"),
        ("method: grid\n", "", "method is None; it is one of grid, random, bayes"),
        ("method: grid", "method: grid\nparameter: {}", "unknown key 'parameter'; did you mean parameters"),
        ("method: grid", "method: grid\nearly_terminate: {type: hyperband}", "early_terminate has type; write early_"),
        ("method: grid", "method: grid\nrun_cap: 3.5", "run_cap is 3.5; it is a number of cells, at least 1"),
        ("method: grid", "method: grid\nmethod: grid", "line 4: method is written twice"),
        ("name: quickstart", "name: a/b", "name is 'a/b'; it names a folder"),
        ("name: quickstart", "name: ..", "name is '..'; it names a folder"),
        ("name: quickstart", "name: q\nprogram: 3", "program is 3; write program: vitlight"),
        ("goal: maximize", "goal: max", "metric.goal is 'max'; it must be minimize or maximize"),
        ("{name: val/top1, goal: maximize}", "val/top1", "metric is 'val/top1'; write metric: {name: val/top1"),
        (
            '["${env}", vitlight, fit, --config=experiments/base.yaml, "${args}"]',
            "vitlight fit",
            "write a list of words",
        ),
        ("vitlight, fit", "vitlight, test", "command runs 'vitlight test', but a sweep's cells are runs"),
        ("[0, 1]", "[0, null]", 'seed_everything has null, which W&B hands over as the text None; quote it: "null"'),
        ("[0, 1]", "[[0, null]]", "seed_everything has null"),
        ("[0, 1]", "[0, 1, 0]", "seed_everything has 0 twice (as 0); remove one"),
        ("[0, 1]", "[0, 1, '1']", "seed_everything has '1' twice (as 1); remove one"),
        ("[0, 1]", "[0, 1, 1.0]", "seed_everything has 1.0 twice (as 1); remove one"),
        ("[0, 1]", "[2020-01-01]", "of type date; values are numbers, text, booleans, lists of them or mappings"),
        ("[0, 1]", "[[{a: 1}]]", "of type dict; values are numbers"),
        ("[0, 1]", "[{a: {b: null}}]", "seed_everything: a: b has null, which W&B hands over as the text None"),
        ("[0, 1]", "[{a: {on: 1}}]", "seed_everything: a has the name True, which is not text"),
        ("[0, 1]", "[{a: [1, .nan]}]", "seed_everything: a has nan; a value must be finite"),
        ("[0, 1]", "[{a: 1}, {a: 1}]", "seed_everything has {'a': 1} twice"),
        ("[0, 1]", "[.inf]", "seed_everything has inf; a value must be finite"),
        ("[0, 1]", "[]", "seed_everything has values []; write a list with at least one value"),
        ("{values: [0, 1]}", "3", "parameter seed_everything is 3; write {value: 3}"),
        ("{values: [0, 1]}", "{min: 0, max: 1.5}", "seed_everything has distribution uniform, which a grid can't list"),
        ("{values: [0, 1]}", "{vaule: 1}", "seed_everything has 'vaule', which no sweep can use; did you mean value"),
        ("{values: [0, 1]}", "{}", "seed_everything has no values; give one of value, values, parameters"),
        ("{values: [0, 1]}", "{value: 1, values: [1]}", "seed_everything has value and values; give one of"),
        ("{values: [0, 1]}", "{values: [1], distribution: normal}", "has distribution 'normal'"),
        ("seed_everything:", "on:", "parameter True is not text; YAML reads on, off, yes and no as booleans"),
        (
            "seed_everything:",
            "model: {parameters: {lr: {value: 1}}}\n  x:",
            "model.lr is given twice, nested and dotted",
        ),
        ("seed_everything:", "model: {parameters: {}}\n  x:", "model.parameters is {}; write at least one NAME"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, old, new, message):
    assert old in SWEEP
    with pytest.raises(InputError) as caught:
        load(tmp_path, SWEEP.replace(old, new, 1))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'some-file.yaml'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("[1, 2", "not YAML: "), ("- a", "holds list, not"), ("", "holds NoneType")]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.yaml: can't be read: No such file or directory"):
        load_sweep(tmp_path / "absent.yaml")


def test_importing_sweeps_imports_nothing_heavy():
    code = (
        "import sys, vitlight.sweep; print(sorted({'torch', 'lightning', 'rich', 'yaml', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

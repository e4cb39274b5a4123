"""The expansion of `command`, against W&B's own agent."""

import pytest

from vitlight.errors import InputError
from vitlight.sweep.command import PARAMETER_MACROS, expand_command, vitlight_arguments

PARAMETERS = {
    "config": {"model": {"arch": "vit_s16", "optimizer": {"lr": 1e-05}}, "data": {"mixing": {"mixup_alpha": 0.0}}},
    "data.num_train_samples": 2000,
    "model": {"loss": "it's", "compile": True, "model_options": {"depths": [1, 2]}},
    "model.arch": "vit_nano1",
    "model.layers": [1, 2],
    "model.lr": 1.0e-3,
    "model.name": 'it\'s a "name"',
    "model.tiny": 1e-05,
    "trainer.compile": True,
    "trainer.logger": False,
}


@pytest.mark.parametrize("macro", PARAMETER_MACROS)
def test_every_parameter_macro_expands_as_in_wandb(wandb_agent_command, macro):
    command = ["${env}", "${interpreter}", "-m", "${program}", "fit", 3, f"${{{macro}}}", "--last=x y"]
    ours = expand_command([str(word) for word in command], "vitlight", PARAMETERS)
    assert ours == wandb_agent_command(command, "vitlight", PARAMETERS)
    assert ours[:6] == ["/usr/bin/env", "python", "-m", "vitlight", "fit", "3"]


def test_environment_variables_expand_as_in_wandb(wandb_agent_command, monkeypatch):
    monkeypatch.setenv("SHARDS", "/data/shards")
    monkeypatch.setenv("SPLIT", "train")
    command = ["vitlight", "fit", "--data.train=${envvar:SHARDS}/${envvar:SPLIT}.tar", "${args}"]
    ours = expand_command(command, None, {"seed": 1})
    assert ours == ["vitlight", "fit", "--data.train=/data/shards/train.tar", "--seed=1"]
    assert ours == wandb_agent_command(command, None, {"seed": 1})


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["vitlight", "fit"], r"command has no \$\{args\}"),
        (["${env}", "${arg}", "fit", "${args}"], r"\$\{arg\}, which is no macro; did you mean args"),
        (["${program}", "fit", "${args}"], r"\$\{program\}, but the file has no program; add program: vitlight"),
        (["vitlight", "fit", "${args}", "${args_json_file}"], r"only W&B's agent writes; use \$\{args\}"),
        (["vitlight", "fit", "--x=${args}", "${args}"], r"has \$\{args\} inside '--x=\$\{args\}'"),
        (["vitlight", "${envvar:NO_SUCH_VARIABLE}", "${args}"], "the environment has no NO_SUCH_VARIABLE"),
    ],
)
def test_a_command_that_would_lose_something_is_refused(command, message):
    with pytest.raises(InputError, match=message):
        expand_command(command, None, {"a": 1})


@pytest.mark.parametrize(
    "words",
    [
        ["vitlight", "fit", "--a=1"],
        ["/usr/bin/env", "vitlight", "fit", "--a=1"],
        ["/opt/venv/bin/vitlight", "fit", "--a=1"],
        ["/usr/bin/env", "python", "-m", "vitlight", "fit", "--a=1"],
        ["python3.11", "-m", "vitlight", "fit", "--a=1"],
    ],
)
def test_what_follows_vitlight(words):
    assert vitlight_arguments(words) == ("fit", "--a=1")


@pytest.mark.parametrize(
    "words",
    [["python", "train.py", "--a=1"], ["vitlight", "test"], ["vitlight"], [], ["env", "A=1", "vitlight", "fit"]],
)
def test_another_program_is_refused(words):
    with pytest.raises(InputError, match="a sweep's cells are runs of `vitlight fit`; write command: "):
        vitlight_arguments(words)

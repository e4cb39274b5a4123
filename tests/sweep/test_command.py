"""The expansion of `command`, against W&B's own agent."""

import pytest

from vitlight.errors import InputError
from vitlight.sweep.command import PARAMETER_MACROS, expand_command, vitlight_arguments

PARAMETERS = {
    "data.num_train_samples": 2000,
    "model.arch": "vit_nano1",
    "model.layers": [1, 2],
    "model.lr": 1.0e-3,
    "model.name": 'it\'s a "name"',
    "model.tiny": 1e-05,
    "trainer.compile": True,
    "trainer.logger": False,
}


@pytest.fixture
def wandb_agent_command(monkeypatch, tmp_path):
    """What `wandb agent` would start for a command and parameters: its own code, stopped before the process."""
    wandb_agent = pytest.importorskip("wandb.wandb_agent")
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_SWEEP_ID"):
        monkeypatch.setenv(name, "placeholder")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))

    class Process:
        started = None

        def __init__(self, command, env, forward_signals):
            Process.started = command

    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)

    def started(command, program, parameters):
        agent = wandb_agent.Agent(api=None, queue=None)
        agent._sweep_command = list(command)
        args = {name: {"value": value} for name, value in parameters.items()}
        agent._command_run({"type": "run", "run_id": "abc", "program": program, "args": args})
        return Process.started

    return started


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

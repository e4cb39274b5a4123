"""`wandb sweep` and `wandb agent` as they are: the cells that they start, and what the server sees of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.conftest import fit_args as fit_args_fixture
from tests.sweep.test_sweep_files import SWEEPS, PublishedSets
from tests.wandb.server import KEY, open_server
from vitlight.cli import main
from vitlight.sweep import load_sweep

# `wandb COMMAND`, that looks for news every 0.2 s in place of 5.
WANDB = (
    "from wandb.wandb_agent import Agent; Agent.POLL_INTERVAL = 0.2; "
    "from wandb.cli.cli import cli; cli(prog_name='wandb')"
)


def as_served(value):
    """A value after its way through W&B's server, which writes whole numbers without a point."""
    if isinstance(value, dict):
        return {name: as_served(item) for name, item in value.items()}
    if isinstance(value, list):
        return [as_served(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@pytest.mark.parametrize("name", SWEEPS)
def test_every_cell_is_the_same_run_under_the_agent(name, wandb_agent_command, monkeypatch):
    """W&B's own code makes each cell's words, of values that have been to the server and back: they are those of
    `vitlight sweep run`, or spell whole numbers otherwise, which makes no other run (four such cells are resolved)."""
    monkeypatch.chdir(ROOT)
    sweep, resolve = load_sweep(f"sweeps/{name}.yaml"), PublishedSets()
    assert f"--run.name={sweep.name}" in sweep.command  # an agent knows of no other name for their directory
    respelled = []
    for cell in sweep.cells():
        served = json.loads(json.dumps(as_served(cell.parameters)))
        assert served == cell.parameters
        words = wandb_agent_command(sweep.command, sweep.program, served)
        assert words[:2] == ["/usr/bin/env", "vitlight"]
        assert [word.partition("=")[0] for word in words[2:]] == [word.partition("=")[0] for word in cell.args]
        if tuple(words[2:]) != cell.args:
            respelled.append((words[2:], cell.args))
    for theirs, ours in respelled[:: -(-len(respelled) // 4) or 1]:
        assert resolve(tuple(theirs)).run_id == resolve(ours).run_id


@pytest.fixture
def server():
    with open_server() as server:
        yield server
    assert server.unknown == []


@pytest.fixture
def wandb_cli(server, tmp_path, monkeypatch):
    """Run the real `wandb COMMAND`, at the server; returns its output."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    environment = os.environ | {
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": KEY,
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", WANDB, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_the_agent_runs_a_sweep_and_each_cell_is_one_run(server, wandb_cli, tiny_shards, tmp_path):
    """Three cells: one on two ranks, one that was done before, without W&B; all in the sweep's own directory."""
    fixed = [arg for arg in fit_args_fixture.__wrapped__(tiny_shards, tmp_path) if not arg.startswith("--run.wandb=")]
    two_ranks = {"trainer": {"devices": 2, "strategy": "ddp"}, "seed_everything": 1}
    sweep = {
        "name": "tiny",
        "program": "vitlight",
        "method": "grid",
        "metric": {"name": "val/top1", "goal": "maximize"},
        "command": ["${env}", "vitlight", *fixed, "${args}"],
        "parameters": {"config": {"values": [{"seed_everything": 0}, two_ranks, {"seed_everything": 2}]}},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(sweep))
    cells = load_sweep(path).cells()
    assert main([*cells[2].args, "--run.wandb=false"]) == 0

    said = wandb_cli("sweep", "--project", "scaling", str(path))
    assert "wandb agent tester/scaling/sweep0" in said
    assert yaml.safe_load(server.sweeps["sweep0"]) == sweep
    for number, cell in enumerate(cells):
        args = {name: {"value": value} for name, value in json.loads(json.dumps(cell.parameters)).items()}
        command = {"type": "run", "run_id": f"cell{number}", "program": "vitlight", "args": args}
        server.commands.append([command])
    said = wandb_cli("agent", "tester/scaling/sweep0")

    assert list(server.runs) == ["cell0", "cell1", "cell2"], said
    run_dirs = {json.loads(path.read_text())["seed"]: path.parent for path in tmp_path.glob("runs/tiny/*/result.json")}
    assert sorted(run_dirs) == [0, 1, 2]
    for seed, (run_id, shown) in enumerate(server.runs.items()):
        assert (shown.sweep, shown.project, shown.group, shown.num_starts) == ("sweep0", "scaling", "tiny", 1), run_id
        assert shown.exit_codes == [0]
        result = json.loads((run_dirs[seed] / "result.json").read_text())
        assert result["num_ranks"] == (2 if seed == 1 else 1)
        assert shown.summary["top1"] == pytest.approx(result["top1"])
        assert [row["_step"] for row in shown.rows] == list(range(10))
        # What the agent gave stands in the config under the sweep's own name, beside the whole of the run's.
        assert shown.config["config"]["value"] == cells[seed].parameters["config"]
        assert shown.config["seed_everything"]["value"] == seed
    assert said.count("done already, nothing to do") == 1
    # The directory is that of `vitlight sweep run`, which finds nothing left to do.
    assert main(["sweep", "status", str(path), "--root", str(tmp_path / "runs"), "--json"]) == 0

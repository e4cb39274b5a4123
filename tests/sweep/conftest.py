"""Sweep files, fake runners as processes, and the record of what the fake runs did."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.sweep import fake_fit
from vitlight.sweep import commands, control, warm

REPOSITORY = Path(__file__).parents[2]
COMMAND = ["${env}", "vitlight", "fit", "--config=base.yaml", "${args}"]
DEADLINE_SECONDS = 30.0


@pytest.fixture
def write_sweep(tmp_path):
    """Write a sweep file from its parameters (NAME -> list of values) and other keys; returns its path."""

    def write(parameters, **keys):
        content = {"name": "demo", "method": "grid", "command": COMMAND}
        content["parameters"] = {name: {"values": values} for name, values in parameters.items()}
        path = tmp_path / "demo.yaml"
        path.write_text(yaml.safe_dump(content | keys))
        return path

    return write


def wait_for(condition, what):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS} s for {what}"
        time.sleep(0.01)


class Playground:
    """A root folder on which fake runners work."""

    def __init__(self, root):
        self.root = root
        self.processes = []

    def runner(self, sweep_file, jobs=1):
        """Start a runner that leads its own session, as one in a terminal does."""
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.sweep.fake_runner", str(sweep_file), str(self.root), str(jobs)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.root,
            env=environment,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def events(self, word):
        """[(arch, run id, process id)] of the events of one kind, in the order in which they happened."""
        path = self.root / "events"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(arch, run_id, int(pid)) for kind, arch, run_id, pid in map(str.split, lines) if kind == word]

    def open_gate(self):
        (self.root / "gate").touch()

    def wait_for(self, condition, what):
        wait_for(condition, what)

    def wait_for_events(self, word, count):
        self.wait_for(lambda: len(self.events(word)) >= count, f"{count} x {word}, have {self.events(word)}")
        return self.events(word)


def end(process, deadline_seconds=DEADLINE_SECONDS):
    """Its exit code and output."""
    output, _ = process.communicate(timeout=deadline_seconds)
    return process.returncode, output


@pytest.fixture
def playground(tmp_path):
    root = tmp_path / "runs"
    root.mkdir()
    playground = Playground(root)
    yield playground
    playground.open_gate()
    for process in playground.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def sweep_cli(monkeypatch, request, tmp_path):
    """Call `vitlight sweep ACTION PLACE OPTIONS` on the fake `fit`, in a root of its own; returns its exit code."""
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
    monkeypatch.setattr(warm.WarmExecutor.__init__, "__defaults__", (1, "tests.sweep.fake_fit", None))
    monkeypatch.setattr("vitlight.training.resolve.Resolver", lambda: fake_fit.resolve)
    monkeypatch.setattr(control, "LOOK_SECONDS", 0.02)
    parser = argparse.ArgumentParser()
    commands.add_sweep_parser(parser.add_subparsers())
    (tmp_path / "runs").mkdir()

    def call(action, place, *options):
        root = [] if place.is_dir() else [f"--root={tmp_path / 'runs'}"]
        args = parser.parse_args(["sweep", action, *root, str(place), *options])
        return args.handler(args)

    return call


def table_cells(text):
    return [[word.strip() for word in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


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

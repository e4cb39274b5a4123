"""The `sweep` commands as the command line calls them."""

import argparse
import json
import subprocess
import sys

import pytest

from tests.sweep import fake_fit
from vitlight.sweep import commands, load_sweep, plan, warm


@pytest.fixture
def sweep_cli(monkeypatch, request, tmp_path):
    """Call `vitlight sweep ARGS` on the fake `fit`; returns its exit code."""
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
    monkeypatch.setattr(warm.WarmExecutor.__init__, "__defaults__", (1, "tests.sweep.fake_fit", None))
    real = plan.plan_sweep
    monkeypatch.setattr(plan, "plan_sweep", lambda sweep, root, track: real(sweep, fake_fit.resolve, root, track))
    parser = argparse.ArgumentParser()
    commands.add_sweep_parser(parser.add_subparsers())

    def call(action, file, *options):
        args = parser.parse_args(["sweep", action, str(file), f"--root={tmp_path / 'runs'}", *options])
        return args.handler(args)

    return call


def test_run_and_status(sweep_cli, write_sweep, capsys, tmp_path):
    sweep_file = write_sweep({"model.arch": ["ok_1", "broken_2", "nan_3"]})
    (tmp_path / "runs").mkdir()
    assert sweep_cli("run", sweep_file) == 1
    last = capsys.readouterr().out.splitlines()[-3:]
    log = tmp_path / "runs" / "demo" / "logs" / f"{load_sweep(sweep_file).cells()[1].id}.log"
    assert last == [
        f"demo: 1 of 3 cells done, 1 diverged, 1 failed; {tmp_path / 'runs' / 'demo'}",
        f"failed: model.arch=broken_2: exit code 1 and no result: ValueError: broken on purpose; log: {log}",
        "the same command tries the failed cells again",
    ]
    assert sweep_cli("status", sweep_file, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in rows] == ["done", "failed", "diverged"]
    (tmp_path / "runs" / "repaired").touch()
    assert sweep_cli("run", sweep_file, "--jobs", "2") == 0
    assert f"demo: 2 of 3 cells done, 1 diverged; {tmp_path / 'runs' / 'demo'}\n" in capsys.readouterr().out


def test_building_the_parser_imports_nothing_heavy():
    code = (
        "import argparse, sys\n"
        "from vitlight.sweep.commands import add_sweep_parser\n"
        "add_sweep_parser(argparse.ArgumentParser().add_subparsers())\n"
        "print(sorted({'torch', 'lightning', 'rich', 'yaml', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

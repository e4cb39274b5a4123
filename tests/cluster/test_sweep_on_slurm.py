"""A sweep of real runs on two nodes of a real Slurm, one cell on both, with a node that is lost: it ends by itself."""

import json
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.conftest import fit_args as fit_args_fixture

SECONDS = 300.0
STEPS = 40


@pytest.fixture
def sweep_file(tiny_shards, tmp_path) -> Path:
    """Two cells on one node each and one on two; steps are slow until the file `fast` is there."""
    slow = {"class_path": "tests.cluster.slow_steps.SlowSteps"}
    slow["init_args"] = {"seconds": 0.5, "fast": str(tmp_path / "fast")}
    settings = [arg for arg in fit_args_fixture.__wrapped__(tiny_shards, tmp_path) if not arg.startswith("--run.name")]
    settings += [f"--model.duration.samples={16 * STEPS}", "--run.rank_timeout_seconds=60", "--trainer.strategy=ddp"]
    settings += ["--run.checkpoint_every_steps=4", f"--trainer.callbacks={json.dumps([slow])}"]
    configs = []
    for seed, num_nodes in enumerate((1, 1, 2)):
        configs.append(str(tmp_path / f"cell{seed}.yaml"))
        Path(configs[-1]).write_text(f"seed_everything: {seed}\ntrainer: {{num_nodes: {num_nodes}}}\n")
    content = {"name": "tiny", "method": "grid", "command": ["${env}", "vitlight", *settings, "${args}"]}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content | {"parameters": {"config": {"values": configs}}}))
    return path


def test_a_sweep_with_a_cell_on_two_nodes_goes_on_when_a_node_is_lost(slurm, sweep_file):
    root = sweep_file.parent / "runs" / "tiny"
    env = {**slurm.env, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "vitlight", "sweep", "run", str(sweep_file), "--slurm"]
    log = sweep_file.with_suffix(".log")

    def sweep_run():
        with log.open("a") as output:
            return subprocess.Popen(command, env=env, stdout=output, stderr=output, cwd=ROOT)

    def said():
        return "\n".join([log.read_text(), *(path.read_text() for path in root.glob("logs/*.log"))])

    def num_ranks(path):
        return 1 if json.loads(path.read_text())["task"] is not None else 2

    first = sweep_run()
    slurm.wait_for(
        lambda: len(list(root.glob("*/metrics.jsonl"))) == 3, f"three runs: {said() if log.exists() else ''}", SECONDS
    )
    (pair,) = (path for path in root.glob("claims/*.job") if num_ranks(path) == 2)
    number, metrics = json.loads(pair.read_text())["job"], root / pair.stem / "metrics.jsonl"
    slurm.wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 3, f"rows: {said()}", SECONDS)
    first.kill()
    first.wait()
    slurm.lose_node("node2")
    second = sweep_run()
    slurm.wait_for(lambda: int(slurm.job(number)["Restarts"]) >= 1, f"a requeue of job {number}: {said()}", SECONDS)
    slurm.start_node("node2")
    (sweep_file.parent / "fast").touch()
    deadline = time.monotonic() + SECONDS
    while second.poll() is None:
        assert time.monotonic() < deadline, said()
        start_requeued(slurm)
        time.sleep(0.5)
    assert second.returncode == 0, said()
    assert "tiny: 3 of 3 cells done; " in log.read_text()
    results = {path.parent.name: json.loads(path.read_text()) for path in root.glob("*/result.json")}
    assert sorted(result["num_ranks"] for result in results.values()) == [1, 1, 2]
    assert results[pair.stem]["num_ranks"] == 2
    for path in root.glob("*/metrics.jsonl"):
        steps = [row["step"] for row in map(json.loads, path.read_text().splitlines()) if row["event"] == "train"]
        assert steps == list(range(2, STEPS + 1, 2)), path
    assert "resumes at step" in said()
    assert list(root.glob("claims/*.job")) == []


def start_requeued(slurm) -> None:
    """Without the two minutes that Slurm lets requeued jobs wait; a few seconds they need, since slurmd refuses a start in
    the second in which it revoked the job's last credential."""
    for number in slurm.command("squeue", "--noheader", "--array", "--format=%i", "--states=PENDING").split():
        job = slurm.job(number)
        if job.get("Reason") == "BeginTime" and datetime.now() > datetime.fromisoformat(job["SubmitTime"]) + timedelta(
            seconds=4
        ):
            words = ["scontrol", "update", f"jobid={job['JobId']}", "StartTime=now"]
            subprocess.run(words, env=slurm.env, capture_output=True, timeout=60)

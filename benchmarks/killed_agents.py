"""Many agents on one sweep's directory, killed at random: each cell done exactly once, none lost, none repeated.

    python benchmarks/killed_agents.py --markdown docs/sweeps.md --json OUT.json
    unshare -n python benchmarks/killed_agents.py            # with the network cut off
    python benchmarks/killed_agents.py --hosts 2             # two hosts whose locks don't reach each other

Cells are trivial (trivial_cell.py), the agents are `vitlight sweep run` from `run_planned` on, one process each. At random
moments drawn with a seed that is printed, SIGKILL ends an agent, a cell, or an agent with its cell; with several hosts,
once all that runs on one of them, which stays away. Dead agents are started again. Ends with 1 unless every cell has one
result, and no cell was started while it ran or after it was done.
"""

import argparse
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from random import Random
from typing import Any

from agent_hosts import Host, children, has_network, is_cell, processes_of
from pages import write_measured

from vitlight.sweep.executors import LocalExecutor
from vitlight.sweep.outcomes import is_finished
from vitlight.sweep.plan import PlannedCell, RecordedRun, plan_sweep
from vitlight.sweep.runner import run_planned
from vitlight.sweep.space import load_sweep
from vitlight.sweep.status import read_result
from vitlight.training.signals import REQUEUE

CELL = (sys.executable, "-I", "-S", str(Path(__file__).with_name("trivial_cell.py")))
BEAT_SECONDS = 0.5  # of leases, for --hosts; a host is dead after 6 s
TARGETS = ("agent", "cell", "agent and cell")


def resolve(args: Any) -> Any:
    settings = dict(arg.removeprefix("--").split("=", 1) for arg in args[1:])
    name = f"cell-{settings['cell']}"
    run_dir = Path(settings["run.root"]) / settings["run.name"] / name
    one = dict.fromkeys((field.name for field in fields(RecordedRun) if field.type is int), 1)
    return RecordedRun(run_id=name, run_dir=run_dir, arch="trivial", family=None, **one)


class Harness:
    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.options, self.random = options, Random(options.seed)
        sweep_file = folder / "sweep.yaml"
        least, most = options.seconds
        sweep_file.write_text(
            "name: trivial\nmethod: grid\n"
            f'command: ["${{env}}", vitlight, fit, --least={least}, --most={most}, "${{args}}"]\n'
            f"parameters:\n  cell: {{values: {list(range(options.cells))}}}\n"
        )
        self.sweep_file, self.root = sweep_file, folder / "runs"
        self.planned: list[PlannedCell] = plan_sweep(load_sweep(sweep_file), resolve, self.root)
        self.hosts = [Host(f"host{index}", folder / f"host{index}") for index in range(options.hosts)]
        for host in self.hosts:
            host.folder.mkdir()
        self.is_shared = options.hosts > 1
        self.kills: Counter[str] = Counter()
        self.num_agents = 0

    @property
    def directory(self) -> Path:
        return self.root / "trivial"

    def num_finished(self) -> int:
        return sum(is_finished(read_result(item.run.run_dir)) for item in self.planned)

    def start_agent(self, host: Host) -> None:
        self.num_agents += 1
        pid = os.fork()
        if pid:
            host.agents[pid] = self.num_agents
            return
        os.setsid()
        code = 70
        try:
            if self.is_shared:
                host.move_in()
            code = self._be_agent(host)
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _be_agent(self, host: Host) -> int:
        from rich.console import Console

        with (host.folder / f"agent-{os.getpid()}").open("w") as log:
            console = Console(file=log if self.options.keep else io.StringIO(), width=200)
            executor = LocalExecutor(1, CELL)
            beat = BEAT_SECONDS if self.is_shared else 10.0
            outcome = run_planned(self.planned, self.sweep_file, executor, 0.05, console, beat)
        return outcome.exit_code

    def run(self) -> float:
        """Seconds until every cell has a result and every agent has ended."""
        began = time.monotonic()
        for index in range(self.options.agents):
            self.start_agent(self.hosts[index % len(self.hosts)])
        power_cut_at = self.options.cells // 2 if self.is_shared else None
        done, since = 0, began
        while any(host.agents for host in self.hosts):
            time.sleep(self.random.expovariate(1 / self.options.kill_every))
            if self.num_finished() != done:
                done, since = self.num_finished(), time.monotonic()
            self._reap(restart=done < self.options.cells)
            if done < self.options.cells:
                # Agents that wait for a silent host's cells have to live for as long.
                if time.monotonic() - since < 1.0:
                    self._kill_something()
                if power_cut_at is not None and done >= power_cut_at:
                    power_cut_at = None
                    self._cut_power(self.hosts[-1])
            if time.monotonic() - began > self.options.limit_seconds:
                raise SystemExit(f"{done} of {self.options.cells} cells after {self.options.limit_seconds} s")
        return time.monotonic() - began

    def _reap(self, restart: bool) -> None:
        for host in self.hosts:
            for pid in list(host.agents):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    code = os.waitstatus_to_exitcode(status)
                    assert code in (0, 1, REQUEUE, -signal.SIGKILL), f"an agent ended with {code}"
                    del host.agents[pid]
                    if restart:
                        self.start_agent(host)

    def _kill_something(self) -> None:
        agents = [pid for host in self.hosts for pid in host.agents]
        target = self.random.choice(TARGETS)
        agent = self.random.choice(agents)
        cells = [pid for pid in children(agent) if is_cell(pid)]
        if target != "agent" and not cells:
            return
        victims = {"agent": [agent], "cell": cells, "agent and cell": [agent, *cells]}[target]
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kills[target] += 1

    def _cut_power(self, host: Host) -> None:
        """Kill all that runs on a host: agents, cells (of killed agents, too), and what beats its leases."""
        self.kills["host"] += 1
        deadline = time.monotonic() + 10.0
        while victims := [*host.agents, *processes_of(host)]:
            assert time.monotonic() < deadline, f"{victims} don't end"
            for pid in victims:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reap(restart=False)
            time.sleep(0.01)
        self.hosts.remove(host)  # it stays away: the others have to take its cells over
        for _ in range(self.options.agents // (len(self.hosts) + 1)):
            self.start_agent(self.hosts[0])

    def verdict(self, seconds: float) -> dict[str, Any]:
        events = Counter(tuple(line.split()) for line in (self.directory / "events").read_text().splitlines())
        words = Counter(dict.fromkeys(("start", "done", "repeated", "overlap"), 0))
        for (word, _), count in events.items():
            words[word] += count
        done_twice = [cell for (word, cell), count in events.items() if word == "done" and count > 1]
        return {
            "cells": self.options.cells,
            "agents": self.options.agents,
            "hosts": self.options.hosts,
            "network": has_network(),
            "seed": self.options.seed,
            "kills": dict(self.kills),
            "agents_started": self.num_agents,
            "cells_started": words["start"] + words["repeated"],
            "cells_done": self.num_finished(),
            "done_twice": len(done_twice),
            "repeated": words["repeated"],
            "overlaps": words["overlap"],
            "seconds": round(seconds, 1),
        }


def as_markdown(report: dict[str, Any]) -> str:
    kills = sum(report["kills"].values())
    each = ", ".join(f"{count} {name}" for name, count in sorted(report["kills"].items()))
    rows = [
        ("cells, agents at a time, hosts", f"{report['cells']}, {report['agents']}, {report['hosts']}"),
        ("network", "there" if report["network"] else "cut off"),
        ("SIGKILLs", f"{kills} ({each})"),
        ("agents started", report["agents_started"]),
        ("cells started", report["cells_started"]),
        ("cells with a result", report["cells_done"]),
        (
            "done twice, started after a result, two at once",
            f"{report['done_twice']}, {report['repeated']}, {report['overlaps']}",
        ),
        ("seconds", report["seconds"]),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="killed-agents-"))
    print(f"seed {options.seed}, in {folder}", flush=True)
    harness = Harness(folder, options)
    try:
        return harness.verdict(harness.run())
    finally:
        for host in harness.hosts:
            for pid in [*host.agents, *processes_of(host)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if not options.keep:
            shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, nargs=2, default=(0.1, 0.3), metavar=("LEAST", "MOST"), help="of a cell"
    )
    parser.add_argument("--kill-every", type=float, default=0.1, metavar="SECONDS", help="mean time between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-seconds", type=float, default=600.0)
    parser.add_argument("--keep", action="store_true", help="the folder, with what the agents said")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="page whose part between the marks is replaced")
    options = parser.parse_args()
    report = measure(options)
    print(as_markdown(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    if options.markdown:
        name = "killed agents" if options.hosts == 1 else "killed agents on two hosts"
        write_measured(options.markdown, as_markdown(report), name)
    bad = report["done_twice"] or report["repeated"] or report["overlaps"] or report["cells_done"] != report["cells"]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

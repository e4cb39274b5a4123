"""Runs of `vitlight fit` killed at random moments, restarted until they are done, and compared with runs left alone.

    python benchmarks/random_kills.py --markdown docs/exact_resume.md --json OUT.json
    python benchmarks/random_kills.py --kills 6 --kills-per-run 6 --cases 0

Each run is killed `--kills-per-run` times, by SIGKILL, SIGTERM and SIGUSR1 in equal parts, at moments drawn with a seed that
is printed: at steps, while a checkpoint is written, in evaluations, while it starts, and after its last step. Ends with 1
if anything differs or an exit code is not as promised. docs/exact_resume.md says what is compared.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: what forks must have no threads
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from forked import preload
from kill_cases import CASES, HORIZON, MOVING_CASES, Case, World, fit_arguments, write_data
from killed_fit import MOMENTS, Attempt, Kill, Moment, Outcome
from pages import write_measured

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
_SHARES: dict[Moment, float] = {"start-up": 0.15, "step": 0.35, "saving": 0.25, "evaluating": 0.15, "end": 0.1}
_MAX_ATTEMPTS = 60  # of a run after its last kill and before it; more means that it doesn't get on


@dataclass
class Run:
    """A run that was killed, and what came of it."""

    case: str
    seed: int
    worlds: list[str]
    outcomes: list[Outcome] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    weight_distance: float | None = None

    @property
    def kills(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.fell is not None]


@dataclass
class Whole:
    """A run that was left alone."""

    folder: Path
    run_dir: Path
    lengths: dict[Moment, float]


class Harness:
    """All runs, in one folder on one set of images."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        write_data(self.data)
        self._wholes: dict[tuple[str, World], Whole] = {}

    def _place(self, name: str, case: Case, world: World) -> tuple[Path, Path]:
        """A new folder for ledgers and logs, and the run directory in it."""
        from vitlight.training.resolve import resolve_run

        folder = self.folder / name
        folder.mkdir()
        return folder, resolve_run(fit_arguments(case, world, self.data, folder / "runs")).run_dir

    def whole(self, case: Case, world: World) -> Whole:
        """The run in this world, made once."""
        if (case.title, world) not in self._wholes:
            folder, run_dir = self._place(f"whole-{len(self._wholes):02d}", case, world)
            arguments = fit_arguments(case, world, self.data, folder / "runs")
            attempt = Attempt(arguments, world, folder, run_dir / "checkpoints", 0)
            outcome = attempt.run(None, HORIZON, {})
            if outcome.faults:
                raise SystemExit("\n".join([*outcome.faults, *_logs(folder)]))
            self._wholes[case.title, world] = Whole(folder, run_dir, attempt.lengths(HORIZON))
        return self._wholes[case.title, world]

    def run(self, case: Case, world: World, number: int, kills: Iterable[Kill], rng: Random, seed: int) -> Run:
        """Start, kill, start again until it is done, then compare."""
        from kill_differences import differences

        whole = self.whole(case, World() if case.moving else world)
        folder, run_dir = self._place(f"killed-{number:02d}", case, world)
        run, left = Run(case.title, seed, [str(world)]), iter(kills)
        for attempt_number in range(_MAX_ATTEMPTS):
            arguments = fit_arguments(case, world, self.data, folder / "runs")
            attempt = Attempt(arguments, world, folder, run_dir / "checkpoints", attempt_number)
            kill = next(left, None)
            if kill is not None and kill.rank >= world.num_ranks:
                kill = Kill(**{**vars(kill), "rank": 0})
            outcome = attempt.run(kill, HORIZON, whole.lengths)
            run.outcomes.append(outcome)
            run.differences += outcome.faults
            if set(outcome.codes) == {0}:
                break
            if kill is None:
                run.differences.append(f"attempt {attempt_number} was not killed, and ended with {outcome.codes}")
                break
            world = case.next_world(world, rng)
            run.worlds.append(str(world))
        run.differences += differences(whole.run_dir, run_dir, whole.folder, folder, not case.moving)
        if run.differences:
            (folder / "differences.txt").write_text("\n".join(run.differences))
        else:
            shutil.rmtree(folder)
        return run


def draw_kills(rng: Random, number: int, signals: Iterator[signal.Signals], num_ranks: int) -> list[Kill]:
    """In the order of their steps, those after the last step at the end."""
    moments = rng.choices(MOMENTS, [_SHARES[moment] for moment in MOMENTS], k=number)
    steps = sorted(rng.sample(range(1, HORIZON), number))
    return [
        Kill(
            signal=next(signals),
            moment=moment,
            step=step,
            part=rng.random(),
            to=rng.choice(("rank", "all", "group")),
            rank=rng.randrange(num_ranks),
        )
        for moment, step in zip(sorted(moments, key=lambda moment: moment == "end"), steps, strict=True)
    ]


def shuffled_signals(rng: Random) -> Iterator[signal.Signals]:
    """Each as often as the others in every three."""
    while True:
        yield from rng.sample(SIGNALS, len(SIGNALS))


def _logs(folder: Path) -> list[str]:
    return [line for path in sorted(folder.glob("log-*.txt")) for line in path.read_text().splitlines()[-20:]]


def make_runs(harness: Harness, cases: list[Case], wanted: int, per_run: int, seed: int) -> list[Run]:
    """Cases and worlds in turn until `wanted` kills have fallen."""
    signals = shuffled_signals(Random(seed))
    plans = [(case, world) for case in cases for world in case.worlds()]
    runs: list[Run] = []
    while (fallen := sum(len(run.kills) for run in runs)) < wanted:
        case, world = plans[len(runs) % len(plans)]
        run_seed = seed + 1 + len(runs)
        rng = Random(run_seed)
        kills = draw_kills(rng, min(per_run, wanted - fallen), signals, world.num_ranks)
        began = time.perf_counter()
        runs.append(harness.run(case, world, len(runs), kills, rng, run_seed))
        print(_line(runs[-1], time.perf_counter() - began), flush=True)
        for difference in runs[-1].differences[:8]:
            print(f"    {difference}", flush=True)
    return runs


def _line(run: Run, seconds: float) -> str:
    kills = " ".join(f"{one.kill.signal.name[3:]}@{one.fell}:{one.last_step}" for one in run.kills if one.kill)
    verdict = f"{len(run.differences)} DIFFERENCES" if run.differences else "equal"
    return f"{run.case} | {run.worlds[0]} | seed {run.seed} | {kills} | {verdict} | {seconds:.0f} s"


def _count(values: Iterable[Any], names: Iterable[Any]) -> str:
    counts = Counter(values)
    return ", ".join(f"{counts[name]} {name}" for name in names if counts[name]) or "–"


def _cells(run: Run) -> tuple[Any, ...]:
    worlds = "changing" if len(set(run.worlds)) > 1 else run.worlds[0]
    resumed = [outcome.resumed_from for outcome in run.outcomes[1:]]
    return (
        run.case,
        worlds,
        run.seed,
        len(run.kills),
        _count((one.kill.signal.name[3:] for one in run.kills if one.kill), ("KILL", "TERM", "USR1")),
        _count((one.fell for one in run.kills), MOMENTS),
        ", ".join("–" if step is None else str(step) for step in resumed),
        f"{len(run.differences)} differences" if run.differences else "equal",
    )


def render(report: dict[str, Any], runs: list[Run]) -> str:
    machine, kills = report["machine"], [one for run in runs for one in run.kills]
    codes = Counter(code for one in kills for code in one.codes if one.kill and one.kill.signal != signal.SIGKILL)
    columns = (
        "run | ranks, workers, accumulated | seed | kills | by | fell in | resumed from step | beside its whole run"
    )
    lines = [
        f"{len(kills)} kills of {len(runs)} runs: "
        f"{_count((one.kill.signal.name[3:] for one in kills if one.kill), ('KILL', 'TERM', 'USR1'))}; "
        f"{_count((one.fell for one in kills), MOMENTS)}. Ranks ended by TERM or USR1 with exit code "
        f"{', '.join(f'{code} ({count} times)' for code, count in codes.most_common())}. "
        f"Runs that differ: {sum(bool(run.differences) for run in runs)}.",
        "",
        f"{machine['cores']} cores, {machine['system']}, Python {machine['python']}, torch {machine['torch']}, lightning "
        f"{machine['lightning']}, commit {machine['commit']}; seed {report['seed']}; {report['minutes']:.0f} minutes.",
        "",
        f"| {columns} |",
        "|---" * (columns.count("|") + 1) + "|",
        *("| " + " | ".join(map(str, _cells(run))) + " |" for run in runs),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all")
    parser.add_argument("--kills-per-run", type=int, default=10)
    parser.add_argument("--cases", nargs="+", type=int, help="by their number, from 0; the last ones change worlds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a folder to keep; what differs is left there")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="a page whose part between the marks is replaced")
    arguments = parser.parse_args()
    every = [*CASES, *MOVING_CASES]
    cases = every if arguments.cases is None else [every[number] for number in arguments.cases]
    preload()
    from vitlight.training.record import code_commit, package_versions

    began = time.perf_counter()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="vitlight-kills-"))
    work.mkdir(parents=True, exist_ok=True)
    print(f"seed {arguments.seed}, in {work}", flush=True)
    runs = make_runs(Harness(work), cases, arguments.kills, arguments.kills_per_run, arguments.seed)
    machine = {"cores": len(os.sched_getaffinity(0)), "system": platform.platform(), "commit": code_commit()}
    report = {
        "machine": machine | package_versions(),
        "seed": arguments.seed,
        "minutes": (time.perf_counter() - began) / 60,
        "runs": [asdict(run) for run in runs],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    page = render(report, runs)
    print(page)
    if arguments.markdown:
        write_measured(arguments.markdown, page)
    if any(run.differences for run in runs):
        sys.exit(f"there are differences; what the runs left is in {work}")
    if arguments.work is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()

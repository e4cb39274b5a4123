"""The process that shows a run's record on Weights & Biases: `python -m vitlight.training.wandb_process SETTINGS.json`.

All that W&B does (hang, raise, wait at its end for a network that is gone) happens here, beside the run and not in it.
SETTINGS.json holds what `wandb.init` gets, the path of metrics.jsonl, and `finish_seconds`. Standard input has one JSON
object a line: `{"until": N}`, the record has grown to N bytes; at the end `{"finish": {"summary": {}, "exit_code": 0}}`,
without which the run was killed. Standard output gets `{"url": URL}` when the server has the run, `{"error": TEXT}` when
something first goes wrong, and at the end `{"rows": N}`, the rows that W&B took, with `"gave_up": true` where its time was
over before it had ended.

Each row goes to W&B as the step of its line number, so what a resumed run has there already is not sent again. A run that
is offline has no server to ask: its whole record is written anew, and the folder of the earlier attempt removed.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitlight.messages import say

__all__ = ["children_of", "main"]

_SAMPLES, _FLOPS = "data/samples_seen", "compute/train_flops"  # the axes


def children_of(pid: int) -> list[int]:
    """Process ids of the children of a process; none where there is no /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


class _Feed:
    """What the run says, read by a thread, so that its pipe is never full."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.until = 0
        self.finish: dict[str, Any] = {"summary": {}, "exit_code": 1}
        self.ended = False

    def read(self) -> None:
        for line in sys.stdin:
            try:
                message = json.loads(line)
            except ValueError:  # torn by a kill
                break
            with self.changed:
                self.until = message.get("until", self.until)
                self.finish = message.get("finish", self.finish)
                self.changed.notify()
        with self.changed:
            self.ended = True
            self.changed.notify()

    def next(self, seen: int) -> tuple[int, bool]:
        """Waits for news; returns (until, ended)."""
        with self.changed:
            self.changed.wait_for(lambda: self.until != seen or self.ended)
            return self.until, self.ended


class _Said:
    """What W&B says in place of raising: a logger, as its silent mode wants one."""

    def __init__(self) -> None:
        self._earlier: list[str] = []
        self._hear: Callable[[str], None] = self._earlier.append

    def listen(self, hear: Callable[[str], None]) -> None:
        """Call `hear` for warnings and errors from now on, and for those there were."""
        self._hear = hear
        while self._earlier:
            hear(self._earlier.pop(0))

    def info(self, text: str) -> None:
        say(text)

    def warning(self, text: str) -> None:
        self.info(text)
        self._hear(text.removeprefix("wandb: ").removeprefix("WARNING ").removeprefix("ERROR "))

    error = warning


class _Projection:
    """metrics.jsonl, row for row, in a W&B run."""

    def __init__(self, settings: dict[str, Any], report: Any) -> None:
        self.settings, self.report = settings, report
        self.path = Path(settings["metrics_path"])
        self.offset = self.line = self.num_rows = 0
        self.first_line = 0  # those before it, W&B has
        self.failed = self.lacks_pictures = False
        self.said = _Said()
        self.defined = {_SAMPLES, _FLOPS}

    def open(self) -> None:
        given = self.settings["init"]
        if given["mode"] == "offline":
            self._open_offline(given)
        else:
            try:
                self._init(given)
                self.first_line = self.run.starting_step
                self.report({"url": self.run.url})
            except Exception as error:  # such as a server that refuses
                self.complain(error, "; they are in its offline folder, for `wandb sync`")
                _end_service()  # it still holds the run's id
                self._open_offline({**given, "mode": "offline", "resume": None})
        self.run.define_metric(_SAMPLES)
        self.run.define_metric(_FLOPS)

    def _init(self, given: dict[str, Any]) -> None:
        import wandb

        options = wandb.Settings(silent=True, console="off", x_stats_pid=self.settings["pid"])
        wandb.setup(options)
        wandb.termsetup(options, self.said)  # its service gives up without an error, and only says so
        self.run = wandb.init(**given, settings=options)
        self.said.listen(self._report_problem)

    def _open_offline(self, given: dict[str, Any]) -> None:
        folder = Path(given["dir"], "wandb")
        while list(folder.glob(f"*{time.strftime('%Y%m%d_%H%M%S')}*")):  # W&B names it after the second of its start
            time.sleep(0.1)
        self._init(given)
        for earlier in folder.glob(f"offline-run-*-{given['id']}"):
            if not Path(self.run.dir).is_relative_to(earlier.resolve()):
                shutil.rmtree(earlier, ignore_errors=True)

    def send(self, until: int) -> None:
        if until <= self.offset:
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            block = file.read(until - self.offset)
        for line in block.splitlines(keepends=True):
            row = json.loads(line)
            numbers = {name: value for name, value in row.items() if "/" in name and isinstance(value, (int, float))}
            numbers["trainer/global_step"] = row["step"]
            figures = row.get("figures", {})
            for name in (numbers.keys() | figures.keys()) - self.defined:
                self._define(name)
            if self.line >= self.first_line:
                self._log(numbers, figures)
            self.num_rows += 1
            self.offset += len(line)
            self.line += 1

    def _define(self, name: str) -> None:
        """Bind a metric to what it is drawn against: each by its name, as two patterns that fit are taken in any order."""
        self.run.define_metric(name, step_metric=_FLOPS if name.startswith(("val/", "test/")) else _SAMPLES)
        self.defined.add(name)

    def _log(self, numbers: dict[str, Any], figures: dict[str, str]) -> None:
        try:
            self.run.log({**numbers, **self._pictures(figures)}, step=self.line, commit=True)
        except Exception as error:
            self.num_rows -= 1
            self.complain(error)

    def _pictures(self, figures: dict[str, str]) -> dict[str, Any]:
        """Of files in the run directory; one that isn't there any more is left out, and said."""
        import wandb

        paths = {name: self.path.parent / file for name, file in figures.items()}
        for path in paths.values():
            if not path.is_file() and not self.lacks_pictures:
                self.lacks_pictures = True
                say(f"vitlight: W&B gets no picture of {path}: it is gone")
        return {name: wandb.Image(str(path)) for name, path in paths.items() if path.is_file()}

    def close(self, finish: dict[str, Any]) -> None:
        self.run.summary.update(finish["summary"])
        self.run.finish(exit_code=finish["exit_code"])
        _end_service()  # it has written its files when it has ended, not before

    def complain(self, error: Exception, then: str = "") -> None:
        self._report_problem(f"{type(error).__name__}: {error}", then)

    def _report_problem(self, text: str, then: str = "") -> None:
        if not self.failed:
            self.report({"error": " ".join(text.split())[:500] + then})
        self.failed = True


def _end_service() -> None:
    import wandb

    with contextlib.suppress(SystemExit):  # how it ends where its service failed
        wandb.teardown()


def main() -> None:
    # The run alone decides when this ends: a cluster signals every process of a job.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever W&B prints

    def report(message: dict[str, Any]) -> None:
        try:
            print(json.dumps(message), file=answers, flush=True)
        except OSError:  # nobody listens any more
            return

    settings = json.loads(Path(sys.argv[1]).read_text())
    _be_the_agents_run(settings["agent"])
    sys.argv = ["vitlight", "fit"]  # the command that W&B shows
    os.environ["WANDB_PROGRAM"] = "vitlight"
    feed, projection = _Feed(), _Projection(settings, report)

    def give_up() -> None:
        report({"rows": projection.num_rows, "gave_up": True})
        _leave(1)

    def listen() -> None:
        feed.read()
        timer = threading.Timer(settings["finish_seconds"], give_up)
        timer.daemon = True
        timer.start()

    threading.Thread(target=listen, daemon=True).start()
    try:
        projection.open()
        seen, ended = 0, False
        while not ended:
            seen, ended = feed.next(seen)
            projection.send(seen)
        projection.close(feed.finish)
    except Exception as error:
        projection.complain(error)
    report({"rows": projection.num_rows})
    _leave(0)


def _be_the_agents_run(variables: dict[str, str]) -> None:
    """Have the environment that `wandb agent` gave the run, now or when it was first started, or of no agent."""
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        os.environ.pop(name, None)
    os.environ.update(variables)
    if not Path(os.environ.get("WANDB_SWEEP_PARAM_PATH", "")).is_file():  # W&B insists on it
        os.environ.pop("WANDB_SWEEP_PARAM_PATH", None)


def _leave(code: int) -> None:
    """At once, with W&B's service: its hooks at exit may wait for ever."""
    for child in children_of(os.getpid()):
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    os._exit(code)


if __name__ == "__main__":
    main()

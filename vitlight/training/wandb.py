"""Weights & Biases as a projection of the record: offline where there is no key, on rank 0 only, never in the way.

Nothing of W&B is imported in a training process. A process of its own (`wandb_process`) reads metrics.jsonl and sends it;
all that the run does is to tell it, without waiting, how long the record has grown.
"""

import contextlib
import json
import netrc
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vitlight.messages import say
from vitlight.training.checkpoint import write_atomically
from vitlight.training.record import RunDirectory
from vitlight.training.spare import Helper, start_helper
from vitlight.training.wandb_process import children_of

__all__ = ["WandbProjection", "is_new_to_agent", "is_offline", "is_rank_zero", "start_wandb"]

# What `wandb agent` sets for a run that it starts: which of the sweep's runs it is, and where that sweep is.
_AGENT_RUN = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
_AGENT_PLACE = ("WANDB_ENTITY", "WANDB_PROJECT")
_GRACE_SECONDS = 2.0  # for the process to end by itself when its time is over
_QUIET_SECONDS = 3.0  # of waiting at the end, before it is said


def is_rank_zero() -> bool:
    """Known before there is a trainer: launchers set the rank in the environment."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _has_key() -> bool:
    """Whether W&B would find a key without asking: WANDB_API_KEY, or an entry for its host in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def is_offline() -> bool:
    """Whether W&B is to ask no server: WANDB_MODE says so, or there is no key."""
    mode = os.environ.get("WANDB_MODE")
    return mode in ("offline", "dryrun") or (not mode and not _has_key())


class WandbProjection:
    """The record of a run on W&B. No method but `finish` waits, and none raises for what W&B does.

    settings: as `wandb_process` reads them. What goes wrong is one warning; the rows stand in metrics.jsonl.
    """

    def __init__(self, run: RunDirectory, settings: Mapping[str, Any]) -> None:
        self.run, self.finish_seconds = run, float(settings["finish_seconds"])
        self.num_rows: int | None = None  # that W&B took, once it has ended
        self.url: str | None = None  # of the run's page, once the server has it
        self.problem: str | None = None  # why W&B lacks rows
        self._answer, self._gave_up, self._ended = b"", False, False
        self._process: Helper | None = None
        path = _settings_path(run)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(settings, default=str))
            self._process = start_helper("vitlight.training.wandb_process", str(path), path.with_name("projection.log"))
        except OSError as error:
            self._warn(str(error))
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        os.set_blocking(self._process.stdout.fileno(), False)

    def rows_written(self) -> None:
        """The record has grown."""
        self._tell({"until": self.run.metrics_path.stat().st_size})

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Hand over the rest, result and exit code, and wait at most `finish_seconds`. Only the first call counts."""
        if self._process is None or self._ended:
            return
        self._ended = True
        with contextlib.suppress(OSError):
            self.rows_written()
        self._tell({"finish": {"summary": _known(summary), "exit_code": exit_code}})
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        if not self._wait(min(_QUIET_SECONDS, self.finish_seconds)):
            if self.finish_seconds > _QUIET_SECONDS:
                say(f"waiting up to {self.finish_seconds:.0f} s for W&B (run.wandb_finish_seconds)")
            if not self._wait(max(0.0, self.finish_seconds - _QUIET_SECONDS) + _GRACE_SECONDS):
                for pid in (*children_of(self._process.pid), self._process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self._process.wait()
        self._listen()
        self._process.stdout.close()
        total = len(self.run.rows())
        if self.num_rows != total or self._gave_up:
            self._warn(
                f"it took {self.num_rows or 0} of {total} rows within {self.finish_seconds:.0f} s of the end, "
                f"and may not have kept all of them"
            )

    def _wait(self, seconds: float) -> bool:
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _tell(self, message: Mapping[str, Any]) -> None:
        if self._process is None or self._process.stdin is None or self._process.stdin.closed:
            return
        # Shorter than PIPE_BUF, so whole or not at all; what a full pipe refuses, the next message says again.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._process.stdin.fileno(), json.dumps(message).encode() + b"\n")
        self._listen()

    def _listen(self) -> None:
        """Take what the process has answered so far."""
        assert self._process is not None and self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._process.stdout.fileno(), 65536):
                self._answer += chunk
        *lines, self._answer = self._answer.split(b"\n")
        for line in lines:
            message = json.loads(line)
            self.num_rows = message.get("rows", self.num_rows)
            self._gave_up = message.get("gave_up", self._gave_up)
            if "url" in message:
                self.url = message["url"]
                with contextlib.suppress(OSError):  # the report links to it; a run needs none
                    write_atomically(_settings_path(self.run).with_name("url"), f"{self.url}\n")
                say(f"W&B: {self.url}")
            if "error" in message:
                self._warn(message["error"])

    def _warn(self, reason: str) -> None:
        if self.problem is None:
            self.problem = reason
            rank_zero_warn(f"W&B lacks rows of this run, {self.run.metrics_path} has them all: {reason}")


def _known(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if value is not None}


def start_wandb(
    run: RunDirectory,
    run_id: str,
    name: str,
    group: str,
    tags: Sequence[str],
    project: str,
    config: Mapping[str, Any],
    finish_seconds: float,
    anew: bool = False,
) -> WandbProjection | None:
    """Continues the W&B run of the same id; None on other ranks and where W&B is turned off.

    A run that `wandb agent` has started is the agent's run on W&B, under its id and in its sweep, and stays it when it is
    resumed without the agent. anew: it gets a new id on W&B, outside of any sweep. `val/*` and `test/*` are plotted against
    training FLOPs, everything else against samples seen.
    """
    if not is_rank_zero() or os.environ.get("WANDB_MODE") == "disabled":
        return None
    offline, earlier = is_offline(), _earlier_settings(run)
    agent = _agent_variables() or earlier["agent"]
    shown_id = agent.get("WANDB_RUN_ID") or earlier["init"].get("id", run_id)
    if anew:
        shown_id = f"{run_id}-{int(time.time()):x}"
        agent = {variable: agent[variable] for variable in _AGENT_PLACE if variable in agent}
    init = {
        "id": shown_id,
        "name": os.environ.get("WANDB_NAME", name),
        "group": os.environ.get("WANDB_RUN_GROUP", group),
        "job_type": os.environ.get("WANDB_JOB_TYPE", "fit"),
        "tags": [*tags, *filter(None, os.environ.get("WANDB_TAGS", "").split(","))],
        "project": agent.get("WANDB_PROJECT", os.environ.get("WANDB_PROJECT", project)),
        "dir": str(run.path.resolve()),
        "config": dict(config),
        "mode": "offline" if offline else None,
        "resume": None if offline or anew else "allow",
    }
    settings = {
        "init": init,
        "agent": agent,
        "metrics_path": str(run.metrics_path.resolve()),
        "finish_seconds": finish_seconds,
        "pid": os.getpid(),
    }
    return WandbProjection(run, settings)


def is_new_to_agent(run: RunDirectory) -> bool:
    """Whether `wandb agent` asks for this run under an id that it has not been shown under."""
    agent = _agent_variables()
    return bool(agent) and agent["WANDB_RUN_ID"] != _earlier_settings(run)["init"].get("id")


def _agent_variables() -> dict[str, str]:
    """What the agent has set; empty where none has started this process."""
    if not (os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID")):
        return {}
    given = {name: os.environ[name] for name in (*_AGENT_RUN, *_AGENT_PLACE) if os.environ.get(name)}
    if "WANDB_SWEEP_PARAM_PATH" in given:
        given["WANDB_SWEEP_PARAM_PATH"] = str(Path(given["WANDB_SWEEP_PARAM_PATH"]).absolute())
    return given


def _settings_path(run: RunDirectory) -> Path:
    return run.path / "wandb" / "projection.json"


def _earlier_settings(run: RunDirectory) -> dict[str, dict[str, str]]:
    """How the run was last shown: what the agent had set, if one had started it, and what `wandb.init` got."""
    try:
        return {"agent": {}, "init": {}, **json.loads(_settings_path(run).read_text())}
    except (OSError, ValueError):
        return {"agent": {}, "init": {}}

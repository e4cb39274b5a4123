"""A stand-in for W&B's server on loopback: real HTTP, as far as `wandb` 0.31 asks while a run or an agent is at work.

It answers GraphQL (`/graphql`), the stream of a run's rows (`/files/ENTITY/PROJECT/RUN/file_stream`) and uploads
(`/storage/...`), keeps what it was told, and fails as told. Anything else that is asked is noted in `unknown`.
"""

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["KEY", "RunOnServer", "WandbServer", "open_server"]

KEY = "0123456789" * 4  # of the length that W&B asks for, and no one's
ENTITY = "tester"
OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class RunOnServer:
    """What the server was told of one run."""

    id: str
    project: str
    display_name: str | None = None
    group: str | None = None
    job_type: str | None = None
    sweep: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)  # of the history, by number
    repeated: list[int] = field(default_factory=list)  # numbers of lines that came more than once
    exit_codes: list[int] = field(default_factory=list)  # one each time that it ended
    num_starts: int = 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history, without W&B's own columns but the step. There is no gap and no line that came twice."""
        assert (sorted(self.lines), self.repeated) == (list(range(len(self.lines))), [])
        own = ("_runtime", "_timestamp")
        return [
            {name: value for name, value in self.lines[number].items() if name not in own}
            for number in sorted(self.lines)
        ]

    @property
    def axes(self) -> dict[str, str | None]:
        """What `define_metric` bound each metric to. W&B keeps it in the config, with numbers for names."""
        metrics = self.config["_wandb"]["value"]["m"]
        return {entry["1"]: metrics[entry["5"] - 1]["1"] if "5" in entry else None for entry in metrics}


class WandbServer:
    """The server's memory and its behaviour.

    failing: part -> what becomes of its requests: a status code, or "hang" until the server ends. Parts: `graphql`, `rows`
    (the stream), `end` (the request that ends a run), `storage`.
    failing_first: the same, for one request.
    commands: what the agent's next heartbeats get, one list each; an empty one means wait, and none left means exit.
    """

    def __init__(self) -> None:
        self.runs: dict[str, RunOnServer] = {}
        self.failing: dict[str, int | str] = {}
        self.failing_first: dict[str, int] = {}
        self.sweeps: dict[str, str] = {}  # id -> the config's YAML
        self.commands: list[list[dict[str, Any]]] = []
        self.heartbeats: list[dict[str, Any]] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []  # operation and variables
        self.unknown: list[str] = []
        self.keys: set[str] = set()
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.url = ""

    def count(self, operation: str) -> int:
        return sum(name == operation for name, _ in self.asked)

    def behaviour(self, part: str) -> int | None:
        """The status code to answer with in place of an answer."""
        found = self.failing.get(part) or self.failing_first.pop(part, None)
        if found == "hang":
            self.ended.wait()
            return 503
        assert found is None or isinstance(found, int)
        return found

    # ---- GraphQL

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The `data` of an operation; None for one that is not known."""
        method = getattr(self, f"_{operation}", None)
        with self.lock:
            self.asked.append((operation, variables))
            if method is None:
                self.unknown.append(operation)
                return None
            return method(variables)

    def _Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "VXNlcjox", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "tester@example.org"}
        return {"viewer": {**viewer, "admin": False, "flags": "{}", "teams": {"edges": []}}}

    def _ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _OrgFeatureFlags(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"organization": None}

    def _OrganizationCoreWeaveOrganizationID(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"entity": None}

    def _RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        model = {"id": "UHJvamVjdDox", "name": variables["project"], "entity": {"id": "RW50aXR5OjE=", "name": ENTITY}}
        if run is None or run.project != variables["project"]:
            return {"model": {**model, "bucket": None}}
        counts = {"historyLineCount": len(run.lines), "eventsLineCount": 0, "logLineCount": 0}
        texts = {
            "summaryMetrics": json.dumps(run.summary),
            "historyTail": json.dumps([json.dumps(run.lines[max(run.lines)])] if run.lines else []),
            "eventsTail": "[]",
            "config": json.dumps(run.config),
            "wandbConfig": json.dumps({"t": 1}),
        }
        names = {"id": run.id, "name": run.id, "displayName": run.display_name, "tags": run.tags, "notes": None}
        return {"model": {**model, "bucket": {**names, **counts, **texts}}}

    def _UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, RunOnServer(name, variables["project"]))
        assert run.project == variables["project"]
        if variables.get("host") is not None or inserted:
            run.num_starts += 1
        given = {"display_name": "displayName", "group": "groupName", "job_type": "jobType", "sweep": "sweep"}
        for ours, theirs in given.items():
            if variables.get(theirs) is not None:
                setattr(run, ours, variables[theirs])
        run.tags = variables.get("tags") or run.tags
        run.config |= json.loads(variables.get("config") or "{}")
        run.summary |= json.loads(variables.get("summaryMetrics") or "{}")
        project = {"id": "UHJvamVjdDox", "name": run.project, "entity": {"id": "RW50aXR5OjE=", "name": ENTITY}}
        texts = {"displayName": run.display_name, "description": None, "config": json.dumps(run.config)}
        bucket = {"id": name, "name": name, **texts, "sweepName": run.sweep, "historyLineCount": len(run.lines)}
        return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": inserted}}

    def _CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{run}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _RunStoppedStatus(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"run": {"stopped": False}}}

    def _UpsertSweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = variables["config"]
        project = {"id": "UHJvamVjdDox", "name": variables["projectName"], "entity": {"id": "RTox", "name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}}

    def _SweepWithRuns(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["sweep"]
        if name not in self.sweeps:
            return {"project": {"sweep": None}}
        plain = dict.fromkeys(("method", "description", "createdAt", "heartbeatAt", "updatedAt", "bestLoss"))
        sweep = {"id": name, "name": name, "state": "RUNNING", "config": self.sweeps[name], "runs": {"edges": []}}
        return {"project": {"sweep": {**plain, **sweep, "earlyStopJobRunning": False, "controller": None}}}

    def _CreateAgent(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": "agent0"}}}

    def _Heartbeat(self, variables: dict[str, Any]) -> dict[str, Any]:
        """One cell at a time: nothing new while the agent says that a run is under way."""
        running = json.loads(variables["runState"])
        self.heartbeats.append(running)
        commands = [] if running else self.commands.pop(0) if self.commands else [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent0"}, "commands": json.dumps(commands)}}

    # ---- the stream of a run

    def take_rows(self, run_id: str, message: dict[str, Any]) -> None:
        with self.lock:
            run = self.runs[run_id]
            files = message.get("files", {})
            if HISTORY in files:
                first = files[HISTORY]["offset"]
                for number, line in enumerate(files[HISTORY]["content"], first):
                    if number in run.lines:
                        run.repeated.append(number)
                    run.lines[number] = json.loads(line)
            for line in files.get(SUMMARY, {}).get("content", ()):
                run.summary = json.loads(line)
            if message.get("complete"):
                run.exit_codes.append(message["exitcode"])


class _Handler(BaseHTTPRequestHandler):
    server_version = "stub"
    protocol_version = "HTTP/1.1"
    memory: WandbServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _say(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self._body()
        memory = self.memory
        memory.keys.add(self.headers.get("Authorization", ""))
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        telemetry = self.path.startswith("/sdk/otel/")  # of W&B's client, in protobuf
        message = {} if telemetry else json.loads(body)
        part = "telemetry" if telemetry else "graphql" if not stream else "end" if message.get("complete") else "rows"
        if (status := memory.behaviour(part)) is not None:
            self._say(status, {"errors": [{"message": f"told to answer {status}"}]})
        elif stream:
            memory.take_rows(stream.group(1), message)
            self._say(200, {"exitcode": None, "limits": {}})
        elif telemetry:
            self._say(200, {})
        elif part == "graphql":
            named = OPERATION.search(message["query"])
            operation = named.group(1) if named else message["query"][:200]
            data = memory.answer(operation, message.get("variables") or {})
            self._say(200, {"data": data} if data is not None else {"errors": [{"message": f"no {operation} here"}]})
        else:
            memory.unknown.append(f"POST {self.path}")
            self._say(404, {})

    def do_PUT(self) -> None:
        self._body()
        status = self.memory.behaviour("storage")
        self._say(status or 200, {})

    def do_GET(self) -> None:
        self.memory.unknown.append(f"GET {self.path}")
        self._say(404, {})


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed leaves its connections."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def open_server() -> Iterator[WandbServer]:
    memory = WandbServer()
    handler = type("Handler", (_Handler,), {"memory": memory})
    with _Http(("127.0.0.1", 0), handler) as http:
        memory.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield memory
        finally:
            memory.ended.set()
            http.shutdown()
            thread.join()

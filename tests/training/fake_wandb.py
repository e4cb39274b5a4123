"""A stand-in for the package `wandb` in the process that shows a run: notes its calls, and hangs or raises as told."""

import json
from pathlib import Path

SOURCE = """
import json, os, pathlib, time

def note(*call):
    with open(os.environ["FAKE_WANDB_CALLS"], "a") as file:
        file.write(json.dumps(call, default=str) + "\\n")
    behaviour = os.environ.get("FAKE_WANDB", "")
    if behaviour == "hang in " + call[0]:
        time.sleep(1000)
    if behaviour == "raise in " + call[0] and call[-1] != {"mode": "offline"}:
        raise ConnectionError("no route to host")

class Settings:
    def __init__(self, **values):
        self.values = values

class Image:
    def __init__(self, path):
        self.path = path

    def __str__(self):
        return "image " + self.path

class Summary:
    def update(self, values):
        note("summary", values)

class Run:
    summary = Summary()
    url = "https://wandb.example.org/p/runs/abc"
    starting_step = int(os.environ.get("FAKE_WANDB_STARTING_STEP", "0"))

    def __init__(self, folder):
        self.dir = str(folder / "files")

    def define_metric(self, name, step_metric=None):
        note("define_metric", name, step_metric)

    def log(self, row, step, commit):
        note("log", row, step)

    def finish(self, exit_code):
        note("finish", exit_code)

def setup(options):
    pass

def termsetup(options, logger):
    assert callable(logger.warning)

def teardown():
    note("teardown")

def init(**given):
    given.pop("settings")
    note("init", given, {"mode": given["mode"]})
    name = ("offline-run-" if given["mode"] == "offline" else "run-") + time.strftime("%Y%m%d_%H%M%S-") + given["id"]
    folder = pathlib.Path(given["dir"], "wandb", name)
    (folder / "files").mkdir(parents=True)
    return Run(folder)
"""


class FakeWandb:
    """What the stand-in was called with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls_path = folder, folder / "calls.jsonl"
        (folder / "wandb").mkdir()
        (folder / "wandb" / "__init__.py").write_text(SOURCE)

    def calls(self, name: str) -> list[list]:
        if not self.calls_path.exists():
            return []
        rows = [json.loads(line) for line in self.calls_path.read_text().splitlines()]
        return [row[1:] for row in rows if row[0] == name]

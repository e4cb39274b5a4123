"""What stands for `vitlight fit` in killed_agents.py: waits a while and writes a result, and tells on itself where it
should not have been started. The standard library alone, so that it starts in some 20 ms.

Appends to `events` in the sweep's directory: `start CELL`, `done CELL`; and `repeated CELL` where there is a result
already, `overlap CELL` where another process has the cell at the same time (as a lock of its own says, on one host).
"""

import fcntl
import json
import os
import sys
import time
from pathlib import Path


def main(args: list[str]) -> None:
    settings = dict(arg.removeprefix("--").split("=", 1) for arg in args if "=" in arg)
    sweep = Path(settings["run.root"]) / settings["run.name"]
    cell = settings["cell"]
    run_dir = sweep / f"cell-{cell}"
    run_dir.mkdir(parents=True, exist_ok=True)

    def tell(word: str) -> None:
        with (sweep / "events").open("a") as events:
            events.write(f"{word} {cell}\n")

    with (run_dir / "alone").open("a") as alone:
        try:
            fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("overlap")
        tell("repeated" if (run_dir / "result.json").exists() else "start")
        least, most = float(settings["least"]), float(settings["most"])
        time.sleep(least + (most - least) * int.from_bytes(os.urandom(2), "big") / 65535)
        part = run_dir / f"part.{os.getpid()}"
        part.write_text(json.dumps({"status": "done", "reason": None, "top1": 0.5, "pid": os.getpid()}))
        part.replace(run_dir / "result.json")
        tell("done")


if __name__ == "__main__":
    main(sys.argv[1:])

"""A cell of a search, without training: `python -m tests.sweep.searched_fit fit --model.optimizer.lr=...`.

It logs `val/top1` nine times, which rises to the more, the nearer the rate is to 1e-3, and ends early where it is asked to.
`--model.arch=fails_1` fails. With a file `slow` in the root it takes its time.
"""

import json
import math
import os
import sys
import time
from dataclasses import replace

from tests.sweep import fake_fit
from vitlight.errors import InputError
from vitlight.training.end_requests import read_end_request

NUM_VALUES = 9
RIGHT_RATE = 1e-3


def resolve(args):
    settings = dict(arg.removeprefix("--").split("=", 1) for arg in args[1:])
    if float(settings.get("model.optimizer.weight_decay", 0)) > 1:
        raise InputError(f"model.optimizer.weight_decay={settings['model.optimizer.weight_decay']} is above 1")
    arch = settings.get("model.arch", "ok_1")
    known = [word for word in args if not word.startswith("--model.arch=fails")]
    return replace(fake_fit.resolve(known), arch=arch)


def accuracy(rate, number):
    return 0.9 / (1 + math.log10(rate / RIGHT_RATE) ** 2) * (1 - 0.5**number)


def main(args):
    settings = dict(arg.removeprefix("--").split("=", 1) for arg in args[1:])
    run = resolve(args)
    root = run.run_dir.parent.parent

    def event(word):
        with (root / "events").open("a") as file:
            file.write(f"{word} {run.arch} {run.run_id} {os.getpid()}\n")

    def end(status, **values):
        part = run.run_dir / f"result.{os.getpid()}"
        part.write_text(json.dumps({"status": status, "reason": None, "top1": None, **values}))
        part.replace(run.run_dir / "result.json")
        event("end")

    run.run_dir.mkdir(parents=True, exist_ok=True)
    event("start")
    if run.arch.startswith("fails"):
        return 1
    (run.run_dir / "metrics.jsonl").write_text("")
    for number in range(1, NUM_VALUES + 1):
        value = accuracy(float(settings["model.optimizer.lr"]), number)
        with (run.run_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"val/top1": value, "data/samples_seen": 10 * number}) + "\n")
        time.sleep(0.15 if (root / "slow").exists() else 0.002)
        reason = read_end_request(run.run_dir)
        if reason is not None and number < NUM_VALUES:
            end("stopped", reason=reason, samples_seen=10 * number)
            return 0
    end("done", top1=value, samples_seen=10 * NUM_VALUES)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

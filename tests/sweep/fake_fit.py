"""A stand-in for `vitlight fit` and its `resolve_run`: the same contract, no training.

Cells are steered by --model.arch, KIND_N at cost N: `ok` ends well, `gated` waits for the file `gate` first, or for `stop`,
`stubborn` does so without heeding SIGTERM, `broken` exits with 1 until the file `repaired` is there, `doomed` waits and
then is broken, `refused` writes a failed result, `nan` a diverged one. What happens is appended to `events` in the
root, one line each.
"""

import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from vitlight.errors import InputError
from vitlight.training.run_facts import RunFacts

ARCHS = ("ok", "gated", "stubborn", "doomed", "broken", "refused", "nan")
NOT_IDENTITY = ("run.name", "run.root", "run.claim_wait_seconds", "trainer.devices", "trainer.num_nodes")


@dataclass(frozen=True)
class FakeTrunk:
    folder: Path
    last_step: int

    def has(self, step):
        return (self.folder / str(step)).exists()


@dataclass(frozen=True)
class FakeRun(RunFacts):
    trunk: FakeTrunk | None
    settings: None = None


def resolve(args):
    assert args[0] == "fit"
    settings = dict(arg.removeprefix("--").split("=", 1) for arg in args[1:])
    arch = settings.get("model.arch", "ok_1")
    kind, _, cost = arch.partition("_")
    if kind not in ARCHS:
        raise InputError(f"model.arch={arch} is unknown")
    identity = sorted((name, value) for name, value in settings.items() if name not in NOT_IDENTITY)
    run_id = hashlib.sha256(repr(identity).encode()).hexdigest()[:8]
    samples = int(settings.get("data.num_train_samples", 100))
    directory = Path(settings.get("run.root", "runs")) / settings["run.name"]
    trunk = None
    if settings.get("model.schedule.name") == "wsd":
        trunk = FakeTrunk(directory / "trunks" / arch, samples // 10 * 4 // 5)
    return FakeRun(
        run_id=run_id,
        run_dir=directory / run_id,
        arch=arch,
        image_size=32,
        num_train_samples=samples,
        params=1000 * int(cost),
        forward_macs=10 * int(cost),
        horizon_samples=samples,
        steps=samples // 10,
        train_flops=60 * int(cost) * samples,
        global_batch_size=10,
        seed=int(settings.get("seed_everything", 0)),
        trunk=trunk,
    )


def main(args):
    run = resolve(args)
    root = run.run_dir.parent.parent
    kind = run.arch.partition("_")[0]

    def event(word):
        with (root / "events").open("a") as file:
            file.write(f"{word} {run.arch} {run.run_id} {os.getpid()}\n")

    def on_sigterm(signum, frame):
        event("sigterm")
        if kind != "stubborn":
            sys.exit(3)

    def result(status, **values):
        part = run.run_dir / f"result.{os.getpid()}"
        part.write_text(json.dumps({"status": status, "reason": None, **values}))
        part.replace(run.run_dir / "result.json")

    signal.signal(signal.SIGTERM, on_sigterm)
    signal.signal(signal.SIGUSR1, lambda signum, frame: sys.exit(75))
    run.run_dir.mkdir(parents=True, exist_ok=True)
    (run.run_dir / "experiment.yaml").write_text("fake: true\n")
    row = {"data/samples_seen": 40, "time/wall_seconds": 0.5}
    (run.run_dir / "metrics.jsonl").write_text(json.dumps(row) + '\n{"torn')
    stop_file = run.run_dir / "stop"
    stop_file.unlink(missing_ok=True)
    event("start")
    while kind in ("gated", "stubborn", "doomed") and not (root / "gate").exists():
        time.sleep(0.01)
        if kind == "gated" and stop_file.exists():
            return 75
    time.sleep(0.02)
    print("threads", os.environ.get("OMP_NUM_THREADS"), "gpus", os.environ.get("CUDA_VISIBLE_DEVICES"))
    if kind in ("broken", "doomed") and not (root / "repaired").exists():
        print("something\nValueError: broken on purpose")
        return 1
    if kind == "refused":
        result("failed", reason=f"refused by {os.getpid()}\nsecond line")
        return 1
    if kind == "nan":
        result("diverged", reason="loss is NaN at step 3", top1=None, samples_seen=30, wall_seconds=1.5)
    else:
        result("done", top1=0.25, samples_seen=run.horizon_samples, wall_seconds=2.5)
    event("end")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

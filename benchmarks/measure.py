"""One measurement of one contender, in a process of its own: prints one line of JSON. `data_loading.py` starts it.

PYTHON measure.py CONTENDER CASE_FOLDER {prepare | rate | stages} [--warmup S] [--seconds S] [--spawned TIME]
"""

import argparse
import contextlib
import importlib
import json
import logging
import os
import platform
import shutil
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from peers.case import BATCH_SIZE, WORKERS, Case

MIN_WARMUP_BATCHES = 8
MIN_BATCHES = 20  # measured: workers deliver in turn, so the count is uncertain by about one


class WrongImages(RuntimeError):
    """A contender handed out something else than augmented images of the case."""


def session_cpu_seconds() -> float:
    """CPU seconds so far of all living processes of this session: the contender and its workers."""
    session, ticks = os.getsid(0), 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """CPU seconds so far of everything that ran on this process's cores, the hypervisor's theft included."""
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in os.sched_getaffinity(0):
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def check(batch: Any, case: Case) -> None:
    """Right shape and type, real pixels (grey level and contrast near the case's), and no two images alike."""
    images = np.asarray(batch)
    size = case.output_size
    shapes = ((BATCH_SIZE, 3, size, size), (BATCH_SIZE, size, size, 3))
    if images.shape not in shapes or images.dtype != np.uint8:
        raise WrongImages(f"a batch is {images.dtype} {images.shape}, not uint8 {shapes[0]} or {shapes[1]}")
    mean, contrast = float(images.mean()), float(images.reshape(BATCH_SIZE, -1).std(axis=1).mean())
    # A batch of 64 crops strays from the mean of all whole images by about 5 grey levels.
    if abs(mean - case.mean_pixel) > 25 or contrast < 15:
        raise WrongImages(f"mean pixel {mean:.0f}, contrast {contrast:.0f}; the images' mean is {case.mean_pixel:.0f}")
    if len({image.tobytes() for image in images}) < 0.9 * BATCH_SIZE:
        raise WrongImages("a batch holds the same image several times")


def measure_rate(module: ModuleType, case: Case, warmup: float, seconds: float, spawned: float) -> dict[str, float]:
    """images_per_second over at least `seconds` and MIN_BATCHES batches, after `warmup` seconds and MIN_WARMUP_BATCHES.

    start_seconds: from the start of the process to the first batch. cores_busy: CPU seconds a second of all the contender's
    processes; others_busy: of everything else on the same cores, which should be near 0.
    """
    if hasattr(module, "rate"):
        images, taken = module.rate(case, seconds)
        return {"images_per_second": images / taken, "images": images}
    batches = iter(module.batches(case))
    check(next(batches), case)
    first = time.time()
    num_batches = 1
    while time.time() - first < warmup or num_batches < MIN_WARMUP_BATCHES:
        check(next(batches), case)
        num_batches += 1
    num_batches, cpu, busy, start = 0, session_cpu_seconds(), busy_seconds(), time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds or num_batches < MIN_BATCHES:
        batch = next(batches)
        num_batches += 1
        if len(batch) != BATCH_SIZE:
            raise WrongImages(f"a batch holds {len(batch)} images, not {BATCH_SIZE}")
    cpu, busy = session_cpu_seconds() - cpu, busy_seconds() - busy
    check(batch, case)
    return {
        "images_per_second": num_batches * BATCH_SIZE / taken,
        "images": num_batches * BATCH_SIZE,
        "start_seconds": first - spawned,
        "cores_busy": cpu / taken,
        "others_busy": max(0.0, busy - cpu) / taken,
    }


def versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def prepare(module: ModuleType, contender: str, case: Case) -> None:
    """Writes the contender's own format where it has one and it is not there yet."""
    if not hasattr(module, "prepare"):
        return
    folder = case.own_folder(contender)
    done = folder.with_suffix(".done")
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        module.prepare(case)
        done.touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contender")
    parser.add_argument("case", type=Path)
    parser.add_argument("what", choices=("prepare", "rate", "stages"))
    parser.add_argument("--warmup", type=float, default=1.5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--spawned", type=float, default=time.time())
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    case = Case.read(args.case)
    with contextlib.redirect_stdout(sys.stderr):
        module = importlib.import_module(f"peers.{args.contender}")
        if args.what == "prepare":
            prepare(module, args.contender, case)
            result: dict[str, Any] = {
                "settings": module.SETTINGS,
                "versions": versions(module.DISTRIBUTIONS),
                "workers": WORKERS,
            }
        elif args.what == "rate":
            result = measure_rate(module, case, args.warmup, args.seconds, args.spawned)
        else:
            result = module.stage_seconds(case)
    print(json.dumps(result), flush=True)
    sys.stderr.flush()
    # Workers of an endless loader are ended with the session by the parent; a loader's own shutdown may take seconds.
    os._exit(0)


if __name__ == "__main__":
    main()

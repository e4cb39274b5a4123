"""A rehearsal of JFT: an index of 300 million samples in 30,000 shards, and what opening, planning and reading it cost.

    python benchmarks/jft_rehearsal.py --data DIR [--samples-per-shard 10_000] [--shards 30_000] [--markdown OUT]

The shards are names of one small tar with one JPEG, at which every sample points; index, plan, loader and workers are the
real ones. DIR gets about 12 GB. Each figure is measured in a process of its own.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

NUM_CLASSES = 18_291
BATCH = 1024


def generate(folder: Path, num_shards: int, samples_per_shard: int) -> None:
    """Shards, and an index of them with the columns that indexing would have written, but for the keys' hashes."""
    import webdataset
    from PIL import Image

    from vitlight.data.columns import SCAN_DTYPES, ScannedShard, columns_digest, open_columns, write_columns
    from vitlight.data.hashing import hash_words
    from vitlight.data.index import load_index
    from vitlight.data.shard_set import ShardSet, shard_place
    from vitlight.data.sources import resolve_shards

    shards = folder / "shards"
    shards.mkdir(parents=True)
    rows, columns = np.mgrid[0:375, 0:500]
    waves = [127 + 60 * np.sin(rows / a) + 60 * np.sin(columns / b) for a, b in ((9, 14), (5, 21), (17, 8))]
    image = Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))
    import io

    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=90)
    with webdataset.TarWriter(str(folder / "one.tar"), encoder=False, mtime=0) as writer:
        writer.write({"__key__": "only", "jpg": buffer.getvalue(), "cls": b"0"})
    one = load_index(folder / "one.tar", folder / "one")
    for number in range(num_shards):
        os.link(folder / "one.tar", shards / f"jft-{number:06d}.tar")
    n, size = samples_per_shard, one.num_bytes[0]

    def scans() -> Any:
        for number in range(num_shards):
            ids = np.arange(number * n, (number + 1) * n, dtype=np.uint64)
            hashes = hash_words(7, ids)
            columns = {
                "offset": np.full(n, one.offset[0]),
                "size": np.full(n, one.size[0]),
                "label": ((hashes >> np.uint64(8)) % np.uint64(NUM_CLASSES)).astype(np.int32),
                "key_hash": hashes,
                "key_offset": np.arange(n, dtype=np.uint32) * 9,
                "key_bytes": np.frombuffer(b"".join(b"%09d" % i for i in ids.tolist()), np.uint8),
                "extra_row": np.empty(0, np.uint32),
                "extra_label": np.empty(0, np.int32),
            }
            yield ScannedShard({name: columns[name].astype(SCAN_DTYPES[name]) for name in columns}, int(size))

    named = ShardSet(resolve_shards(shards))
    index = shards / "index" / named.fingerprint
    index.mkdir(parents=True)
    write_columns(index, scans(), num_shards * n)
    found = open_columns(index)
    meta = {
        "num_samples": num_shards * n,
        "num_labels": len(found["class_counts"]),
        "is_multi_label": False,
        "class_names_digest": None,
        "digest": columns_digest(found),
        "settings": named.settings_digest,
        "shards": [
            {**entry, "place": shard_place(shard)} for shard, entry in zip(named.shards, named.entries, strict=True)
        ],
    }
    (index / "meta.json").write_text(json.dumps(meta))


def _memory_mib(field: str = "VmRSS") -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _open(folder: Path, **rule: Any) -> Any:
    from vitlight.data.subset import SubsetRule
    from vitlight.data.training_set import IndexOptions, open_training_set

    return open_training_set(
        str(folder / "shards"), IndexOptions(), SubsetRule(**rule), seed=0, global_batch_size=BATCH
    )


def _batches_of(index: Any, size: int, augmentation: Any) -> Any:
    """What decodes the images of an index."""
    from vitlight.data.batches import ImageBatches, ImageSource
    from vitlight.data.store import LocalStore

    source = ImageSource(index, LocalStore(index.shards))
    return ImageBatches([source], size=size, channels=3, seed=0, augmentation=augmentation, eval_crop=1.0)


def measure_open(folder: Path) -> dict[str, float]:
    """Seconds to open the index and to plan over it, in a process that has imported what it needs."""
    import vitlight.data.training_set  # noqa: F401

    before, start = _memory_mib(), time.perf_counter()
    training = _open(folder)
    opened = time.perf_counter() - start
    assert training.plan.num_samples == len(training.indexes[0])
    return {"open_seconds": opened, "open_mib": _memory_mib() - before}


def measure_first(folder: Path, epoch: int, part: float) -> dict[str, float]:
    """Seconds from an opened index to the first batch at some part of some epoch, with its columns read."""

    training = _open(folder)
    index = training.indexes[0]
    batches = _batches_of(index, 64, None)
    step = int((epoch + part) * training.plan.num_samples) // BATCH
    start = time.perf_counter()
    located, _, _ = batches.locate(training.plan.batch(step).ids)
    assert len(located) == BATCH
    return {"first_seconds": time.perf_counter() - start}


def measure_plan(folder: Path, num_batches: int) -> dict[str, float]:
    """Milliseconds that the plan takes for a batch, over consecutive batches from the middle of an epoch."""
    training = _open(folder)
    step = training.plan.num_samples // (2 * BATCH)
    training.plan.batch(step - 1)
    times = []
    for number in range(num_batches):
        start = time.perf_counter()
        training.plan.batch(step + number)
        times.append(1e3 * (time.perf_counter() - start))
    times.sort()
    return {
        "plan_median_ms": statistics.median(times),
        "plan_mean_ms": statistics.fmean(times),
        "plan_99_ms": times[int(0.99 * len(times))],
        "plan_max_ms": times[-1],
        "plan_mib": _memory_mib(),
    }


def measure_subset(folder: Path) -> dict[str, float]:
    """Seconds to hold out 0.02 % and choose a tenth by class, the first time and when it is remembered."""
    for path in (folder / "shards" / "index").glob("*/selections/*"):
        path.unlink()
    rule = {"val_fraction": 0.0002, "fraction": 0.1}
    times = []
    for _ in range(2):
        start = time.perf_counter()
        training = _open(folder, **rule)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    training.plan.batch(12_345)
    first = time.perf_counter() - start
    assert len(training.val_ids) == round(0.0002 * len(training.indexes[0]))
    return {"choose_seconds": times[0], "recall_seconds": times[1], "subset_first_seconds": first}


def measure_worker(folder: Path, num_batches: int) -> dict[str, float]:
    """Largest resident set of a worker that decodes batches of 64 from all over an epoch, and of the loading process."""
    import torch

    from vitlight.data.augment import Augmentation
    from vitlight.data.image_loader import Requests, build_loader
    from vitlight.data.plan import BatchRequest

    torch.set_num_threads(1)
    training = _open(folder)
    index = training.indexes[0]
    batches = _batches_of(index, 64, Augmentation(min_area=0.05))
    # Strides through the epoch: each batch from another place, which touches far more of the index than a run does.
    stride = training.plan.num_samples // BATCH // num_batches

    def requests() -> Any:
        for number in range(num_batches):
            request = training.plan.batch(number * stride)
            yield BatchRequest(request.ids[:64], request.epochs[:64], request.repeats[:64], request.step)

    loader = build_loader(batches, Requests(num_batches, requests), num_workers=1, batch_size=64)
    largest = last = 0.0
    for number, _ in enumerate(loader):
        if number % 16 == 15:
            last = max(map(_rss_of, _descendants(os.getpid())))
            largest = max(largest, last)
    return {"worker_largest_mib": largest, "worker_last_mib": last, "main_mib": _memory_mib()}


def measure_epochs(folder: Path, num_epochs: int) -> dict[str, float]:
    """Resident sets after the second and the last epoch over 2,000 small images, with two workers."""
    from vitlight.data.augment import Augmentation
    from vitlight.data.image_loader import Requests, build_loader
    from vitlight.data.subset import SubsetRule
    from vitlight.data.synthetic import synth
    from vitlight.data.training_set import IndexOptions, open_training_set

    synth(folder / "small", num_train=2000, num_test=10, overwrite=True)
    training = open_training_set(
        str(folder / "small" / "train"), IndexOptions(), SubsetRule(), seed=0, global_batch_size=50
    )
    index = training.indexes[0]
    batches = _batches_of(index, 32, Augmentation(policy="trivialaugment"))
    steps = 2000 // 50 * num_epochs
    requests = Requests(steps, lambda: training.plan.micro_batches(0, steps))
    loader = build_loader(batches, requests, num_workers=2, batch_size=50)
    found = {}
    for number, _ in enumerate(loader, start=1):
        if number in (steps // 10, steps - 10):
            epoch = "second" if number == steps // 10 else "last"
            found[f"{epoch}_epoch_main_mib"] = _memory_mib()
            found[f"{epoch}_epoch_worker_mib"] = max(map(_rss_of, _descendants(os.getpid())))
    return found


def _rss_of(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(found[0].split()[1]) / 1024 if found else 0.0


def _descendants(pid: int) -> list[int]:
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            children += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return [each for child in children for each in (child, *_descendants(child))]


def _measured(name: str, *args: Any) -> dict[str, float]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, "--measure", json.dumps([name, *map(str, args)])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def rehearse(folder: Path) -> dict[str, Any]:
    """All figures; of those measured several times, the median and the largest."""
    opened = [_measured("open", folder) for _ in range(5)]
    positions = [(0, 0.0), (0, 0.5), (1, 0.999), (7, 0.25), (300, 0.75)]
    first = [_measured("first", folder, epoch, part)["first_seconds"] for epoch, part in positions]
    return {
        "open_seconds": statistics.median(each["open_seconds"] for each in opened),
        "open_seconds_largest": max(each["open_seconds"] for each in opened),
        "open_mib": max(each["open_mib"] for each in opened),
        "first_seconds": statistics.median(first),
        "first_seconds_largest": max(first),
        **_measured("plan", folder, 3000),
        **_measured("subset", folder),
        **_measured("worker", folder, 2000),
        **_measured("epochs", folder, 20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--shards", type=int, default=30_000)
    parser.add_argument("--samples-per-shard", type=int, default=10_000)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, folder, *rest = json.loads(args.measure)
        measure = {
            "open": measure_open,
            "first": lambda folder, epoch, part: measure_first(folder, int(epoch), float(part)),
            "plan": lambda folder, count: measure_plan(folder, int(count)),
            "subset": measure_subset,
            "epochs": lambda folder, count: measure_epochs(folder, int(count)),
            "worker": lambda folder, count: measure_worker(folder, int(count)),
        }[name]
        print(json.dumps(measure(Path(folder), *rest)))
        return
    if not (args.data / "shards").exists():
        start = time.perf_counter()
        generate(args.data, args.shards, args.samples_per_shard)
        print(f"generated in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    figures = rehearse(args.data)
    lines = [f"{args.shards * args.samples_per_shard:,} samples in {args.shards:,} shards, batches of {BATCH}"]
    lines += ["", "| figure | value |", "|---|---|"]
    lines += [f"| {name} | {value:.3g} |" for name, value in figures.items()]
    lines += ["", f"{os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}"]
    print("\n".join(lines))
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

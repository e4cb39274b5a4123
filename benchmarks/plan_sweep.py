"""How long `vitlight sweep plan` takes for 500 cells, in CPU time of one process and without its imports.

    python benchmarks/plan_sweep.py --markdown docs/sweeps.md

Ten networks of four families at 224 px, ten nested parts of 2,000 generated images, and a third axis: five seeds, or five
learning rates, which have to be parsed one by one. Then the memory of each cell on a GPU of 80 GiB.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from pages import write_measured

from vitlight.data.synthetic import synth
from vitlight.sweep import load_sweep, plan_sweep
from vitlight.sweep.forecast import forecast
from vitlight.sweep.rates import Rates

ROOT = Path(__file__).resolve().parents[1]
ARCHS = ["vit_ti16", "vit_s16", "vit_b16", "vit_l16", "coatnet_0", "coatnet_1", "coatnet_2", "resnet50", "resnet152"]
ARCHS += ["bit_r101x1"]
PARTS = [100 * (index + 1) for index in range(10)]
THIRD_AXIS = {
    "five seeds": ("seed_everything", [0, 1, 2, 3, 4]),
    "five learning rates": ("model.optimizer.lr", [1.0e-4, 2.0e-4, 4.0e-4, 8.0e-4, 1.6e-3]),
}
MEMORY_BYTES = 80 * 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write the table between two marks of this page")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        synth(data, num_train=2000, num_test=100)
        plan_sweep(load_sweep(sweep_file(data, "model.arch", ["vit_nano1"])))  # for what the first cell imports
        rows = [_row(name, sweep_file(data, *axis)) for name, axis in THIRD_AXIS.items()]
    text = "\n".join(
        [
            f"torch {torch.__version__}, CPU time of one core",
            "",
            "| 10 networks x 10 parts x | cells | plan [s] | a cell [ms] | their memory, too [s] |",
            "|---|---:|---:|---:|---:|",
            *rows,
        ]
    )
    print(text)
    if args.markdown is not None:
        write_measured(args.markdown, text, "planning")


def _row(name: str, path: Path) -> str:
    planned, plan_seconds = _timed(lambda: plan_sweep(load_sweep(path)))
    _, memory_seconds = _timed(lambda: forecast(planned, Rates(), MEMORY_BYTES))
    a_cell = 1000 * plan_seconds / len(planned)
    return f"| {name} | {len(planned)} | {plan_seconds:.1f} | {a_cell:.0f} | {memory_seconds:.1f} |"


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    before = time.process_time()
    return work(), time.process_time() - before


def sweep_file(data: Path, parameter: str, values: list[Any]) -> Path:
    """The sweep with `parameter` as its third axis, or with that one alone where it is `model.arch`."""
    experiments = [f"--config={ROOT / 'experiments' / name}.yaml" for name in ("base", "in1k")]
    shards = [f"--data.train={data / 'train'}", f"--data.test={data / 'test'}"]
    grid = {} if parameter == "model.arch" else {"model.arch": ARCHS, "data.num_train_samples": PARTS}
    content = {
        "method": "grid",
        "name": "planned",
        "command": ["vitlight", "fit", *experiments, *shards, f"--run.root={data / 'runs'}", "${args}"],
        "parameters": {name: {"values": each} for name, each in {**grid, parameter: values}.items()},
    }
    path = data / f"{parameter}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


if __name__ == "__main__":
    main()

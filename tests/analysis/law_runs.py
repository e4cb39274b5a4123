"""Runs whose results lie on a law that is known, as run directories."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.analysis.fake_runs import result, write_run

# E = 0.06 + 9 / N^0.35 + 25 / D^0.4 with 73 forward MACs a parameter.
FLOOR, SIZE, DATA, ALPHA, BETA, MACS_PER_PARAM = 0.06, 9.0, 25.0, 0.35, 0.4, 73
SIZES = {"vit_nano1": 20_000, "vit_nano2": 80_000, "vit_nano3": 320_000, "vit_nano4": 1_280_000}
SAMPLES = (20_000, 80_000, 320_000, 1_280_000)


def error_at(params: float, samples: float) -> float:
    return FLOOR + SIZE / params**ALPHA + DATA / samples**BETA


def write_law(
    root: Path, noise: float = 0.0, seeds: tuple[int, ...] = (0,), archs: tuple[str, ...] = tuple(SIZES), **changes: Any
) -> Path:
    """Every arch x samples x seed beneath `root`, each image seen once; the error is off by exp(noise * normal)."""
    for arch in archs:
        for samples in SAMPLES:
            for seed in seeds:
                params = SIZES[arch]
                random = np.random.default_rng([params, samples, seed])
                top1 = 1 - error_at(params, samples) * np.exp(noise * random.standard_normal())
                macs = MACS_PER_PARAM * params
                run = result(arch, samples, seed, params=params, forward_macs=macs, top1=float(top1), top1_count=None)
                run |= {
                    "samples_seen": samples,
                    "unique_samples_seen": samples,
                    "horizon_samples": samples,
                    "epochs": 1.0,
                }
                run |= {"train_flops": 6 * macs * samples, "own_train_flops": 6 * macs * samples}
                write_run(root, run | changes)
    return root

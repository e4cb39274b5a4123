"""What defines a run and its cost, in a form that takes no imports of seconds."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["RunFacts"]


@dataclass(frozen=True)
class RunFacts:
    """A run, as its settings and its images say: who it is, how large its network is, and how long it trains.

    params: trainable. forward_macs: of one image. horizon_samples: images seen at the end of `steps` optimizer steps.
    train_flops: of all of them, 3 x 2 x forward MACs an image.
    """

    run_id: str
    run_dir: Path
    arch: str
    image_size: int
    num_train_samples: int
    params: int
    forward_macs: int
    horizon_samples: int
    steps: int
    train_flops: int
    global_batch_size: int
    seed: int

"""What random_kills.py trains: small runs of every kind of state that a resume could lose."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

__all__ = ["CASES", "HORIZON", "MOVING_CASES", "Case", "World", "fit_arguments", "write_data"]

ROOT = Path(__file__).resolve().parents[1]
HORIZON, BATCH = 48, 16  # optimizer steps of a run, images of each
# Neither evaluations (every 16 steps) nor rows (every 3) fall together with checkpoints (every 5): sums are cut anywhere.
EVALUATIONS, ROW_STEPS, CHECKPOINT_STEPS = 3, 3, 5


@dataclass(frozen=True)
class World:
    """Who works on a run."""

    num_ranks: int = 1
    num_workers: int = 0
    num_micro: int = 1

    def __str__(self) -> str:
        return f"{self.num_ranks}, {self.num_workers}, {self.num_micro}"

    def arguments(self) -> list[str]:
        return [
            f"--trainer.devices={self.num_ranks}",
            f"--trainer.strategy={'ddp' if self.num_ranks > 1 else 'auto'}",
            f"--trainer.accumulate_grad_batches={self.num_micro}",
            f"--data.num_workers={self.num_workers}",
        ]


@dataclass(frozen=True)
class Case:
    """A run's settings. It is killed in each of its worlds, and compared with the run left alone in the same world; a moving
    case starts again in another world after each kill, and is compared with one rank without workers."""

    title: str
    arguments: tuple[str, ...]
    num_micro: int = 1
    moving: bool = False

    def worlds(self) -> list[World]:
        """Where its runs begin."""
        if self.moving:
            return [World(1), World(2, 3)]
        return [World(ranks, workers, self.num_micro) for ranks in (1, 2) for workers in (0, 3)]

    def next_world(self, current: World, rng: Random) -> World:
        """Where a run is started again."""
        if not self.moving:
            return current
        worlds = [World(ranks, workers, micro) for ranks in (1, 2) for workers in (0, 3) for micro in (1, 2, 4)]
        return rng.choice([world for world in worlds if world != current])


_MIX = ("--data.mixing.mixup_alpha=0.8", "--data.mixing.cutmix_alpha=1.0", "--data.mixing.per=sample")
_AUGMENT = ("--data.augmentation.policy=trivialaugment", "--data.augmentation.erase_probability=0.25")
CASES = (
    Case(
        "ViT, dropout, stochastic depth",
        ("--model.arch=vit_nano1", '--model.model_options={"dropout_rate": 0.1, "drop_path_rate": 0.2}'),
    ),
    Case(
        "CoAtNet (batch norm), stochastic depth, MixUp and CutMix",
        ("--model.arch=coatnet_nano1", '--model.model_options={"drop_path_rate": 0.2}', *_MIX),
    ),
    Case(
        "ResNet (batch norm), TrivialAugment, erasing, 2 accumulated",
        ("--model.arch=resnet_nano1", *_AUGMENT),
        num_micro=2,
    ),
    Case(
        "ViT, EMA, repeated augmentation, MixUp",
        ("--model.arch=vit_nano1", "--model.ema_decay=0.9", "--data.num_repeats=2", "--data.mixing.mixup_alpha=0.2"),
    ),
)
MOVING_CASES = (
    Case("ViT, MixUp and CutMix", ("--model.arch=vit_nano1", *_MIX), moving=True),
    Case("ViT, TrivialAugment, repeated", ("--model.arch=vit_nano1", "--data.num_repeats=2", *_AUGMENT), moving=True),
)


def write_data(folder: Path) -> None:
    """200 training images in 7 shards and 61 for the test, generated."""
    from vitlight.data.synthetic import synth

    synth(folder, num_train=200, num_test=61, image_size=32, num_classes=4, difficulty=0.1, samples_per_shard=32)


def fit_arguments(case: Case, world: World, data: Path, root: Path) -> list[str]:
    """The words after `vitlight`."""
    return [
        "fit",
        f"--config={ROOT / 'experiments' / 'base.yaml'}",
        f"--run.root={root}",
        "--run.name=killed",
        f"--run.num_evaluations={EVALUATIONS}",
        f"--run.log_every_steps={ROW_STEPS}",
        f"--run.checkpoint_every_steps={CHECKPOINT_STEPS}",
        "--run.rank_timeout_seconds=60",
        "--run.wandb=false",
        "--trainer.accelerator=cpu",
        f"--model.duration.samples={HORIZON * BATCH}",
        f"--data.train={data / 'train'}",
        f"--data.test={data / 'test'}",
        "--data.num_classes=4",
        "--data.image_size=32",
        f"--data.global_batch_size={BATCH}",
        "--data.eval_batch_size=8",
        "--data.val_fraction=0.2",
        *case.arguments,
        *world.arguments(),
    ]

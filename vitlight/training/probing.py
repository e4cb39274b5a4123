"""`vitlight probe`: a trained model's frozen features, measured on the images of its run or on others, by any number of
ranks, and kept beside the run."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException

from vitlight.data.augment import Augmentation
from vitlight.data.datamodule import ShardedImages
from vitlight.data.labels import LabelSource
from vitlight.data.loader import World
from vitlight.data.mixing import Mixing
from vitlight.errors import InputError
from vitlight.evaluation.features import feature_width
from vitlight.evaluation.probe import Computer, Probes, run_probes
from vitlight.evaluation.scores import Score
from vitlight.messages import say
from vitlight.training.checkpoint import write_atomically
from vitlight.training.record import code_commit, package_versions
from vitlight.training.strategy import launched_world
from vitlight.training.trained import TrainedModel

__all__ = ["PROBE_FILE", "Devices", "Report", "keep", "measure", "open_images"]

PROBE_FILE = "probe.json"
_SCHEMA = 1
_VAL_FRACTION = 0.1  # of training shards that are not the run's own
# Of a run's own settings, what says which of its training images it saw, and how.
_AS_IF_ALL = {
    **dict.fromkeys(("num_train_samples", "train_fraction", "num_train_samples_per_class", "long_tail_ratio")),
    **{"subset_seed": 0, "num_repeats": 1, "max_skipped_samples": 0, "evaluation_sets": None},
}
# What a measurement has to agree in with an earlier one to stand beside it.
_SAME = (
    *("digest", "image_size", "crop_fraction", "mean", "std", "feature_dtype", "precision"),
    *("data_digest", "split", "num_val", "num_seeds", "l2"),
)


@dataclass(frozen=True)
class Devices:
    """accelerator, num, precision: as Lightning names them; num None: one, or as torchrun started them."""

    accelerator: str = "auto"
    num: int | None = None
    precision: Literal["32-true", "bf16-mixed"] = "32-true"

    @contextmanager
    def launched(self) -> Iterator[Fabric]:
        """All ranks, each on its device; those that are not running yet are started with the words of this process."""
        world: dict[str, int] = launched_world({})
        if world and self.num not in (None, world["devices"]):
            raise InputError(
                f"--devices={self.num}, but torchrun started {world['num_nodes']} nodes of {world['devices']} processes; "
                f"leave it out"
            )
        devices = world.get("devices", self.num or 1)
        several = devices * world.get("num_nodes", 1) > 1
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*The `srun` command is available")
                fabric = Fabric(
                    accelerator=self.accelerator,
                    devices=devices,
                    num_nodes=world.get("num_nodes", 1),
                    strategy="ddp" if several else "auto",
                    precision=self.precision,
                )
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"--device={self.accelerator} --devices={devices}: {error}") from error
        fabric.launch()
        try:
            yield fabric
        finally:
            if several and dist.is_initialized():
                dist.destroy_process_group()


@dataclass(frozen=True)
class Report:
    """scores: what was measured. facts: of what, on what and with what."""

    scores: tuple[Score, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


def open_images(trained: TrainedModel, given: Mapping[str, Any]) -> ShardedImages:
    """What `trained` is measured on, prepared: the data of its run, or those that `given`, arguments of ShardedImages,
    describes. All training images count, whichever of them the run trained on.

    Raises InputError as ShardedImages does, and where weights of no run are to be measured on nothing.
    """
    whole: dict[str, Any] = {
        **_AS_IF_ALL,
        "eval_crop": trained.crop_fraction,
        "augmentation": Augmentation(),
        "mixing": Mixing(),
    }
    if "train" not in given:
        if "labels" in given or "num_classes" in given:
            raise InputError(
                "labels and classes are the run's own, unless --data.train names other images; leave them out"
            )
        if not trained.data_settings():
            raise InputError(f"{trained.source}: these weights are of no run; name the images with --data.train")
        return trained.open_data(**whole, **given)
    described = {
        "val_fraction": _VAL_FRACTION,
        "image_size": trained.image_size,
        "channels": trained.in_channels,
        "mean": list(trained.mean),
        "std": list(trained.std),
        "eval_crop": trained.crop_fraction,
        **given,
        "labels": LabelSource(**given.get("labels", {})),
    }
    if "num_classes" not in given:
        index = ShardedImages(**described, num_classes=1).index_options.load(given["train"])
        described["num_classes"] = index.num_classes
    data = ShardedImages(**described, global_batch_size=1)
    data.prepare()
    return data


def measure(
    trained: TrainedModel, data: ShardedImages, probes: Probes, devices: Devices, dtype: torch.dtype
) -> Report | None:
    """Called by all ranks; the report is on the first, and None on the others. dtype: that features are kept in."""
    with devices.launched() as fabric:
        network = trained.network.to(fabric.device)
        # LOCAL_WORLD_SIZE is torchrun's; what is started here is on one node.
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", fabric.world_size))
        computer = Computer(
            network,
            lambda batch: trained.normalize(batch["image"].to(fabric.device, non_blocking=True)),
            computing=fabric.autocast,
            dtype=dtype,
            world=World(fabric.global_rank, fabric.world_size, ranks_per_node=per_node),
            shows=fabric.is_global_zero,
        )
        scores = run_probes(probes, data, computer)
    if not fabric.is_global_zero:
        return None
    facts = {
        "source": trained.source,
        "digest": trained.digest,
        "arch": trained.arch,
        "image_size": trained.image_size,
        "crop_fraction": trained.crop_fraction,
        "mean": list(trained.mean),
        "std": list(trained.std),
        "feature_width": feature_width(network),
        "feature_dtype": str(dtype).removeprefix("torch."),
        "precision": devices.precision,
        "train": data.train_source,
        "test": data.test_source,
        "data_digest": data.data_digest,
        "split": "val" if data.test_index is None else "test",
        "num_classes": data.num_classes,
        "num_val": len(data.val_ids),
        "num_seeds": probes.num_seeds,
        "l2": probes.l2,
        "device": str(fabric.device),
        "num_ranks": fabric.world_size,
        "versions": package_versions(),
        "commit": code_commit(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Report(tuple(scores), facts)


def keep(report: Report, path: Path, name: str) -> None:
    """Write the report to the file of probes at `path`, under `name`, "" for a run's own data. What stands there stays
    where it was measured with the same weights on the same images, and gives way where it was not.

    Raises InputError where the file is something else or can't be written.
    """
    file: dict[str, Any] = {"schema": _SCHEMA, "probes": {}}
    try:
        if path.exists():
            file = json.loads(path.read_text())
        if file["schema"] != _SCHEMA:
            raise ValueError(f"its schema is {file['schema']!r}, not {_SCHEMA}")
        earlier = file["probes"].get(name)
        scores = {score.column: score for score in report.scores}
        if earlier is not None and all(earlier.get(fact) == report.facts[fact] for fact in _SAME):
            scores = {score["column"]: Score.from_record(score) for score in earlier["scores"]} | scores
        elif earlier is not None:
            say(f"{path}: what was measured earlier is of other weights or images, and is replaced")
        record = {**report.facts, "scores": [score.as_record() for score in scores.values()]}
        file["probes"][name] = record
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(file, indent=1) + "\n")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} can't hold what was measured: {error}; name another file with --output") from error

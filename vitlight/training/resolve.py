"""From settings to a validated run: all that can be checked before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import Namespace

from vitlight.cost import count_params, forward_macs, train_flops
from vitlight.data.datamodule import ShardedImages
from vitlight.errors import InputError
from vitlight.models import build_model, set_activation_checkpointing
from vitlight.training.experiment import ExperimentCLI
from vitlight.training.identity import lineage_id, run_id, trunk_id
from vitlight.training.network_parts import set_head_bias
from vitlight.training.origin import Trunk
from vitlight.training.pretrained import weights_digest
from vitlight.training.record import RunDirectory

__all__ = ["ResolvedRun", "resolve", "resolve_run"]

_MAX_SEED = 2**32 - 1  # NumPy's


@dataclass(frozen=True)
class ResolvedRun:
    """One validated command line of `vitlight fit`, before anything runs."""

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
    trunk: Trunk | None = None


def resolve(cli: ExperimentCLI, data: ShardedImages) -> ResolvedRun:
    """Check everything that can be checked without training, and say what the run will be."""
    seed = cli.settings.seed_everything
    if isinstance(seed, bool) or not 0 <= seed <= _MAX_SEED:
        raise InputError(f"seed_everything={seed} is not a number from 0 to {_MAX_SEED}")
    data.prepare()
    run, model = cli.build_run_settings(), cli.build_model_settings()
    with torch.device("meta"):
        network = build_model(
            model["arch"],
            num_classes=data.num_classes,
            image_size=data.image_size,
            in_channels=data.channels,
            **(model["model_options"] or {}),
        )
    set_activation_checkpointing(network, model["activation_checkpointing"])
    if model["head_bias_init"] is not None:
        set_head_bias(network, model["head_bias_init"])
    model["optimizer"].parameter_groups(network)
    macs = forward_macs(network, data.image_size)
    steps = model["duration"].num_steps(data.plan.num_samples, data.global_batch_size, macs)
    folder, digest = Path(run.root) / run.name, None
    horizon = steps * data.global_batch_size
    if model["weights"] is not None:
        digest = weights_digest(model["weights"], model["weights_digest"], folder)
        cli.settings.model.weights_digest = digest  # so that experiment.yaml names the run even without the file
    if run.extend is not None:
        _check_extension(cli.settings, folder / run.extend, data.data_digest, digest, horizon)
    name = run_id(cli.settings, data.data_digest, digest, run.extend)
    trunk, stable_samples = None, model["schedule"].stable_until(horizon)
    if run.share_trunk and run.extend is None and stable_samples is not None:
        its_id = trunk_id(cli.settings, data.data_digest, digest, model["schedule"].warmup(horizon))
        last_step = int(stable_samples / data.global_batch_size + 0.5)
        trunk = Trunk(folder / "trunks" / its_id, last_step) if last_step else None
    return ResolvedRun(
        run_id=name,
        run_dir=folder / name,
        arch=model["arch"],
        image_size=data.image_size,
        num_train_samples=data.plan.num_samples,
        params=count_params(network),
        forward_macs=macs,
        horizon_samples=horizon,
        steps=steps,
        train_flops=train_flops(macs, horizon),
        global_batch_size=data.global_batch_size,
        seed=seed,
        trunk=trunk,
    )


def _check_extension(
    settings: Namespace, base: Path, data_digest: str, weights_digest: str | None, horizon: int
) -> None:
    """Raises InputError where the run in the folder `base` isn't one that these settings continue beyond its horizon."""
    result = RunDirectory(base).read_result()
    if result is None or result["status"] != "done":
        raise InputError(
            f"run.extend={base.name} is no finished run in {base.parent}; finish it first, or name another"
        )
    if result["samples_seen"] >= horizon:
        raise InputError(
            f"run.extend={base.name} has seen {result['samples_seen']} images, and model.duration asks for {horizon} in "
            f"all; make it longer"
        )
    its = ExperimentCLI(["fit", "--config", str(base / "experiment.yaml")]).settings
    if lineage_id(its, result["data_digest"], its.model.weights_digest) != lineage_id(
        settings, data_digest, weights_digest
    ):
        raise InputError(
            f"run.extend={base.name} differs in more than model.duration and model.schedule; take the rest from "
            f"{base / 'experiment.yaml'}"
        )


def resolve_run(args: Sequence[str]) -> ResolvedRun:
    """Validate one `fit` command line (the words after `vitlight`) without running it. Raises InputError."""
    if not args or args[0] != "fit":
        raise InputError(f"a run is a `fit` command, not {' '.join(args[:1]) or 'nothing'!r}")
    cli = ExperimentCLI(args)
    return resolve(cli, cli.build_data())

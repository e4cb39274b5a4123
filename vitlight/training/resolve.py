"""From settings to a validated run: all that can be checked before anything runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import Namespace
from torch import nn

from vitlight.cost import count_params, train_flops
from vitlight.data.datamodule import ShardedImages
from vitlight.errors import InputError
from vitlight.models import set_activation_checkpointing
from vitlight.training.experiment import ExperimentCLI
from vitlight.training.identity import lineage_id, run_id, trunk_id
from vitlight.training.meta_network import network_on_meta, network_to_plan
from vitlight.training.network_parts import set_head_bias
from vitlight.training.origin import Trunk
from vitlight.training.pretrained import options_for_weights, weights_digest
from vitlight.training.record import RunDirectory
from vitlight.training.run_facts import RunFacts

__all__ = ["ImageSet", "ResolvedRun", "Resolver", "resolve", "resolve_run"]

_MAX_SEED = 2**32 - 1  # NumPy's
_SEED = "--seed_everything="
# Settings of the data that change neither which images are trained on nor how many there are.
_NOT_THE_SET = (
    *("seed", "augmentation", "mixing", "mean", "std", "eval_crop", "eval_batch_size", "num_workers"),
    *("max_skipped_samples", "image_size", "channels", "cache_gib", "evaluation_sets", "shared_loader"),
)


@dataclass(frozen=True)
class ResolvedRun(RunFacts):
    """One validated command line of `vitlight fit`, before anything runs. trunk: that it shares with other runs."""

    trunk: Trunk | None = None
    settings: Namespace | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class ImageSet:
    """The images of a run: how many there are to train on, and the digest of them and those it is evaluated on."""

    num_samples: int
    digest: str


def resolve(cli: ExperimentCLI, data: ShardedImages) -> ResolvedRun:
    """Check everything that can be checked without training, and say what the run will be."""
    _check_seed(cli)
    data.prepare()
    return _resolve(cli, data, ImageSet(data.plan.num_samples, data.data_digest), network_on_meta)


class Resolver:
    """`resolve_run` of many command lines: what differs in its seed alone is parsed once, and sets of images that some have
    in common are opened once."""

    def __init__(self) -> None:
        self._sets: dict[str, ImageSet] = {}
        self._parsed: dict[tuple[str, ...], ExperimentCLI] = {}

    def __call__(self, args: Sequence[str]) -> ResolvedRun:
        cli = self._parse(args)
        _check_seed(cli)
        data = cli.build_data()
        named = {name: value for name, value in vars(cli.settings.data).items() if name not in _NOT_THE_SET}
        key = repr(sorted(named.items()))
        if key not in self._sets:
            self._sets[key] = self.open_set(data)
        return _resolve(cli, data, self._sets[key], network_to_plan)

    def _parse(self, args: Sequence[str]) -> ExperimentCLI:
        """A seed is set apart only where it is given once, and no file after it can give another."""
        places = [place for place, word in enumerate(args) if word.startswith(_SEED)]
        value = args[places[0]].removeprefix(_SEED) if len(places) == 1 else ""
        if not value.isdecimal() or any(word.startswith("--config") for word in args[places[0] :]):
            return _parse(args)
        rest = (*args[: places[0]], _SEED, *args[places[0] + 1 :])
        if rest not in self._parsed:
            self._parsed[rest] = _parse(args)
        return self._parsed[rest].with_seed(int(value))

    def open_set(self, data: ShardedImages) -> ImageSet:
        """What the run has to know of its images, checked."""
        data.prepare()
        return ImageSet(data.plan.num_samples, data.data_digest)


def resolve_run(args: Sequence[str]) -> ResolvedRun:
    """Validate one `fit` command line (the words after `vitlight`) without running it. Raises InputError."""
    return Resolver()(args)


def _parse(args: Sequence[str]) -> ExperimentCLI:
    if not args or args[0] != "fit":
        raise InputError(f"a run is a `fit` command, not {' '.join(args[:1]) or 'nothing'!r}")
    return ExperimentCLI(args)


def _check_seed(cli: ExperimentCLI) -> None:
    seed = cli.settings.seed_everything
    if isinstance(seed, bool) or not 0 <= seed <= _MAX_SEED:
        raise InputError(f"seed_everything={seed} is not a number from 0 to {_MAX_SEED}")


def _resolve(
    cli: ExperimentCLI, data: ShardedImages, images: ImageSet, make_network: Callable[..., tuple[nn.Module, int]]
) -> ResolvedRun:
    run, model = cli.build_run_settings(), cli.build_model_settings()
    network, macs = make_network(
        model["arch"], data.num_classes, data.image_size, data.channels, model["model_options"]
    )
    set_activation_checkpointing(network, model["activation_checkpointing"])
    if model["head_bias_init"] is not None:
        set_head_bias(network, model["head_bias_init"])
    model["optimizer"].parameter_groups(network)
    steps = model["duration"].num_steps(images.num_samples, data.global_batch_size, macs)
    folder, digest = Path(run.root) / run.name, None
    horizon = steps * data.global_batch_size
    if model["weights"] is not None:
        digest = weights_digest(model["weights"], model["weights_digest"], folder)
        cli.settings.model.weights_digest = digest  # so that experiment.yaml names the run even without the file
        given = (model["arch"], model["model_options"], data.image_size)
        cli.settings.model.model_options = options_for_weights(model["weights"], *given, folder)
    if run.extend is not None:
        _check_extension(cli.settings, folder / run.extend, images.digest, digest, horizon)
    name = run_id(cli.settings, images.digest, digest, run.extend)
    trunk, stable_samples = None, model["schedule"].stable_until(horizon)
    if run.share_trunk and run.extend is None and stable_samples is not None:
        its_id = trunk_id(cli.settings, images.digest, digest, model["schedule"].warmup(horizon))
        last_step = int(stable_samples / data.global_batch_size + 0.5)
        trunk = Trunk(folder / "trunks" / its_id, last_step) if last_step else None
    return ResolvedRun(
        run_id=name,
        run_dir=folder / name,
        arch=model["arch"],
        image_size=data.image_size,
        num_train_samples=images.num_samples,
        params=count_params(network),
        forward_macs=macs,
        horizon_samples=horizon,
        steps=steps,
        train_flops=train_flops(macs, horizon),
        global_batch_size=data.global_batch_size,
        seed=cli.settings.seed_everything,
        trunk=trunk,
        settings=cli.settings,
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

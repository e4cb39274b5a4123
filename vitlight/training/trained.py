"""A trained model from wherever it lies, with all that is needed to evaluate it as its run did."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitlight.data.augment import Augmentation
from vitlight.data.datamodule import ShardedImages
from vitlight.data.labels import LabelSource
from vitlight.data.mixing import Mixing
from vitlight.data.normalize import normalized
from vitlight.data.sources import shown
from vitlight.errors import InputError
from vitlight.models import arch_family, build_model
from vitlight.models.checkpoint_folder import is_checkpoint_folder
from vitlight.models.hub import is_remote
from vitlight.models.position_grid import keep_position_grid
from vitlight.models.preprocessing import usual_preprocessing
from vitlight.models.weight_files import read_state
from vitlight.models.weight_sizes import sizes_in
from vitlight.models.weights import LoadReport, has_classifier, load_weights
from vitlight.training.found_run import (
    Which,
    checkpoint_digest,
    class_names_of,
    find_checkpoint,
    read_checkpoint,
    read_experiment,
    run_of,
)
from vitlight.training.memory_format import choose_memory_format
from vitlight.training.pretrained import describe_fixed_positions, locate_weights, weights_digest

__all__ = ["TrainedModel", "load_trained"]

_TIMM = "timm:"


@dataclass(frozen=True)
class TrainedModel:
    """A network with its weights, in eval mode, float32, on the CPU, and how images are prepared for it.

    Where the run evaluates an average of its weights, the network has the average. model_options: what the network was built
    with beside arch, sizes and classes. mean, std: per channel, of pixels in [0, 1]. crop_fraction: the evaluation view is
    `data.decode.resize_and_centre(pixels, image_size, crop_fraction)`. class_names: where they are known. source: one line
    for people. digest: of the file of weights, or the checkpoint. run: the run directory, where there is one. loss: what the
    classifier was trained with; where it begins with "sigmoid" each class has a probability of its own. has_classifier:
    False where the weights came without one; the network's is then as it was built, and num_classes says nothing of them.
    """

    network: nn.Module
    arch: str
    model_options: Mapping[str, Any]
    image_size: int
    in_channels: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float
    class_names: tuple[str, ...] | None
    source: str
    digest: str
    run: Path | None = None
    loss: str = "softmax"
    memory_format: torch.memory_format = torch.preserve_format
    has_classifier: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The run's whole experiment.yaml; {} for weights of elsewhere."""

    def normalize(self, images: Tensor) -> Tensor:
        """What the network takes, float32 (B, C, H, W), of uint8 pixels (B, C, H, W) in RGB or luma, on their device."""
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return normalized(images, mean, std).to(memory_format=self.memory_format)

    def check_classifier(self) -> None:
        """InputError for weights that came without a classifier, whose logits would say nothing."""
        if not self.has_classifier:
            raise InputError(
                f"{self.source.partition(',')[0]}: these weights have no classifier; `vitlight probe` measures their "
                f"features, and `vitlight fit --model.weights=... --model.weights_head=fresh` trains one on them"
            )

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Class logits, float32 (B, K), for uint8 pixels (B, C, image_size, image_size) on the network's device.

        InputError as `check_classifier`.
        """
        self.check_classifier()
        logits: Tensor = self.network(self.normalize(images))
        return logits

    def data_settings(self) -> Mapping[str, Any]:
        """The run's `data` settings as experiment.yaml has them; {} for weights of elsewhere."""
        data: Mapping[str, Any] = self.settings.get("data", {})
        return data

    def open_data(self, **changes: Any) -> ShardedImages:
        """The run's own data at this model's image size, prepared; `changes` are other arguments of ShardedImages.

        InputError where the model is of no run, and as `ShardedImages.prepare` says.
        """
        data = self.data_settings()
        if not data:
            raise InputError(f"{self.source}: these weights are of no run, whose data could be read; name the images")
        groups = {"augmentation": Augmentation, "mixing": Mixing, "labels": LabelSource}
        settings = {name: groups[name](**value) if name in groups else value for name, value in data.items()}
        settings |= {"image_size": self.image_size, "seed": self.settings.get("seed_everything", 0), **changes}
        images = ShardedImages(**settings)
        images.prepare()
        return images


def load_trained(
    source: str | Path,
    *,
    arch: str | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    model_options: Mapping[str, object] | None = None,
    layout: str = "auto",
    which: Which = "best",
) -> TrainedModel:
    """The model that `source` names: a run directory (`which` of its checkpoints, see `find_checkpoint`); a checkpoint of a
    run, in its directory or with its experiment.yaml beside it; `timm:NAME[.TAG]`, timm's weights of that name from its hub;
    or, with `arch`, a file of weights, a URL or `hf-hub:ORG/NAME` (`model_options` and `layout` as in `fit`).

    With another `image_size` than it was trained at, position embeddings and relative biases are resized, fixed embeddings
    of a run are those of its grid, and the line `source` says so, as it does of weights with no classifier. Loading draws no
    random numbers of the caller's. Raises InputError for what doesn't exist, what can't be read and what doesn't fit.
    """
    text = str(source)
    options = dict(model_options or {})
    if text.startswith(_TIMM):
        arch, text, name = _timm_source(text, arch)
        return _of_weights(text, arch, image_size, num_classes, options, layout, name)
    if not is_remote(text):
        path = find_checkpoint(Path(text).expanduser(), which)
        run = run_of(path) if path.suffix == ".ckpt" or is_checkpoint_folder(path) else None
        if run is not None:
            settings = read_experiment(run)
            _check_given(run, settings, arch, num_classes, options or None, layout)
            return _of_run(path, run, settings, image_size)
    if arch is None:
        raise InputError(f"{shown(text)}: there is no experiment.yaml of a run beside it; say its arch (--arch)")
    return _of_weights(text, arch, image_size, num_classes, options, layout, None)


def _timm_source(source: str, arch: str | None) -> tuple[str, str, str]:
    """Arch, address of the weights and timm's name of `timm:NAME[.TAG]`."""
    name = source.removeprefix(_TIMM)
    found = f"{_TIMM}{name.partition('.')[0]}"
    if arch not in (None, found):
        raise InputError(f"{source} are weights of {found}, not arch={arch}; leave arch out")
    arch_family(found)  # InputError where timm is missing or has no such model
    import timm

    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:
        config = None
    if config is None or not (config.hf_hub_id or config.url):
        tags = ", ".join(sorted(timm.models.get_arch_pretrained_cfgs(name.partition(".")[0]))[:5])
        raise InputError(f"timm {timm.__version__} has no weights {name}" + (f"; it has {tags}" if tags else ""))
    if not config.hf_hub_id:
        return found, config.url, name
    file = f"/{config.hf_hub_filename}" if config.hf_hub_filename else ""
    return found, f"hf-hub:{config.hf_hub_id}{file}", name


def _check_given(
    run: Path,
    settings: Mapping[str, Any],
    arch: str | None,
    num_classes: int | None,
    options: Mapping[str, object] | None,
    layout: str,
) -> None:
    """InputError where what is given differs from what the run is."""
    for name, given, its in (
        ("arch", arch, settings["model"]["arch"]),
        ("num_classes", num_classes, settings["data"]["num_classes"]),
        ("model_options", options, settings["model"].get("model_options") or {}),
        ("layout", None if layout == "auto" else layout, "vitlight"),
    ):
        if given is not None and given != its:
            raise InputError(f"{name}={given} is not that of run {run}, which has {its}; leave it out")


def _of_run(path: Path, run: Path, settings: Mapping[str, Any], image_size: int | None) -> TrainedModel:
    model, data = settings["model"], settings["data"]
    digest, checkpoint = checkpoint_digest(path), read_checkpoint(path)
    size, channels = data["image_size"] if image_size is None else image_size, data["channels"]
    state = read_state({name: checkpoint[name] for name in checkpoint if name != "vitlight"})
    options = keep_position_grid(model["arch"], model.get("model_options"), size, settings) or {}
    network, report = _loaded(model["arch"], data["num_classes"], size, channels, options, state, "vitlight", path)
    samples = checkpoint["vitlight"]["step"] * data["global_batch_size"]
    said = [f"{run}: {path.name}, {samples:,} samples seen"]
    if model.get("ema_decay") is not None:
        said.append("average of the weights")
    said += _other_size(report, network, data["image_size"], size)
    memory_format = choose_memory_format(model.get("memory_format", "auto"), network, "cpu", "32-true")
    return TrainedModel(
        network=network.to(memory_format=memory_format),  # type: ignore[call-overload]
        arch=model["arch"],
        model_options=options,
        image_size=size,
        in_channels=channels,
        num_classes=data["num_classes"],
        mean=_per_channel(data["mean"], channels),
        std=_per_channel(data["std"], channels),
        crop_fraction=data["eval_crop"],
        class_names=class_names_of(data),
        source=", ".join([*said, f"digest {digest[:12]}"]),
        digest=digest,
        run=run,
        loss=model["loss"],
        memory_format=memory_format,
        settings=settings,
    )


def _of_weights(
    source: str,
    arch: str,
    image_size: int | None,
    num_classes: int | None,
    options: dict[str, Any],
    layout: str,
    timm_name: str | None,
) -> TrainedModel:
    if timm_name is None and source.startswith("hf-hub:timm/"):
        timm_name = source.removeprefix("hf-hub:timm/").partition("@")[0].partition("/")[0]
    file = locate_weights(source)
    state = read_state(file)
    try:
        how = usual_preprocessing(arch, timm_name)
        sizes = sizes_in(state, layout, arch, options, how.image_size)
    except InputError as error:
        raise InputError(f"{shown(source)}: {error}") from error
    trained_size = sizes["image_size"]
    size = trained_size if image_size is None else image_size
    classes = num_classes if num_classes is not None else sizes.get("num_classes", 1000)
    channels = sizes.get("in_channels", 3)
    network, report = _loaded(
        arch, classes, size, channels, options, state, layout, shown(source), may_lack_classifier=True
    )
    how = how.for_channels(channels)
    digest = weights_digest(str(file), None, file.parent)
    said = [f"{shown(source)}: {arch} in {report.layout}'s layout"]
    if report.fresh:
        said.append("no classifier" + (f", {len(report.ignored)} tensors ignored" if report.ignored else ""))
    said += _other_size(report, network, trained_size, size)
    mean, std = (" ".join(f"{value:g}" for value in dict.fromkeys(values)) for values in (how.mean, how.std))
    said.append(f"normalised with mean {mean} and std {std}, crop {how.crop_fraction:g} ({how.whose})")
    said += how.unlike
    memory_format = choose_memory_format("auto", network, "cpu", "32-true")
    return TrainedModel(
        network=network.to(memory_format=memory_format),  # type: ignore[call-overload]
        arch=arch,
        model_options=options,
        image_size=size,
        in_channels=channels,
        num_classes=classes,
        mean=how.mean,
        std=how.std,
        crop_fraction=how.crop_fraction,
        class_names=None,
        source=", ".join([*said, f"digest {digest[:12]}"]),
        digest=digest,
        memory_format=memory_format,
        has_classifier=not report.fresh,
    )


def _loaded(
    arch: str,
    num_classes: int,
    image_size: int,
    in_channels: int,
    options: dict[str, Any],
    state: dict[str, Tensor],
    layout: str,
    shown_source: object,
    may_lack_classifier: bool = False,
) -> tuple[nn.Module, LoadReport]:
    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn, and lost
        network = build_model(arch, num_classes, image_size, in_channels=in_channels, **options)
    try:
        is_fresh = may_lack_classifier and not has_classifier(network, state, layout)
        report = load_weights(network, state, layout, "fresh" if is_fresh else "load")
    except InputError as error:
        raise InputError(f"{shown_source}: {error}") from error
    return network.eval().requires_grad_(False), report


def _other_size(report: LoadReport, network: nn.Module, trained_size: int, image_size: int) -> list[str]:
    if image_size == trained_size:
        return []
    resized = [*report.describe_resized(), *describe_fixed_positions(network)]
    return [f"at {image_size} px in place of {trained_size}", *resized]


def _per_channel(value: float | list[float], num_channels: int) -> tuple[float, ...]:
    return tuple(float(each) for each in value) if isinstance(value, list) else (float(value),) * num_channels

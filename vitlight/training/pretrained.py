"""The weights that a run starts from: where they lie, and the digest that names them."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from vitlight.data.sources import shown
from vitlight.errors import InputError
from vitlight.messages import say
from vitlight.models.checkpoint_folder import is_checkpoint_folder
from vitlight.models.hub import fetch_weights, is_remote
from vitlight.models.layouts.resize import Grids, can_be_resized, resize
from vitlight.models.position_grid import fixed_position_grid, keep_position_grid
from vitlight.models.weights import load_weights

__all__ = [
    "check_weights_settings",
    "describe_fixed_positions",
    "load_pretrained",
    "locate_weights",
    "options_for_weights",
    "resize_to_fit",
    "weights_digest",
]


def check_weights_settings(
    weights: str | None,
    weights_digest: str | None,
    weights_layout: str,
    weights_head: str,
    head_bias_init: float | None,
) -> None:
    """InputError for what says how to read `model.weights` where there are none, and for a bias that they would replace."""
    given = {"weights_digest": weights_digest, "weights_layout": weights_layout, "weights_head": weights_head}
    for name, value in given.items():
        if weights is None and value not in (None, "auto", "load"):
            raise InputError(f"model.{name}={value} has no meaning without model.weights; set that, or leave it out")
    if weights is not None and weights_head == "load" and head_bias_init is not None:
        raise InputError(
            f"model.head_bias_init={head_bias_init} is lost where model.weights are loaded with their head; set it to "
            f"null, or model.weights_head=fresh"
        )


def locate_weights(source: str) -> Path:
    """The file of `model.weights`, fetched first where that names a hub or a URL; of a run directory its best checkpoint, or
    its newest. InputError where there is none."""
    if is_remote(source):
        return fetch_weights(source)
    path = Path(source).expanduser()
    if (path / "experiment.yaml").is_file():
        from vitlight.training.found_run import find_checkpoint  # which asks this module for digests

        return find_checkpoint(path)
    if not path.is_file() and not is_checkpoint_folder(path):
        raise InputError(
            f"model.weights={source} is not a file; give a file of weights, a run directory, a URL or hf-hub:ORG/NAME"
        )
    return path


def _checked_digest(path: Path, source: str, expected: str | None) -> str:
    """Digest of the file that `source` led to; InputError where it isn't the `expected` one."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    digest = _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))
    if expected not in (None, digest):
        raise InputError(
            f"model.weights={shown(source)} has digest {digest}, not model.weights_digest={expected}: its content is "
            f"another; bring that file back, or set model.weights_digest=null to start a new run"
        )
    return digest


def load_pretrained(
    model: nn.Module, source: str, expected_digest: str | None, layout: str, head: Literal["load", "fresh"]
) -> str:
    """Load `source` into the model, and say in a line what was read. InputError where anything doesn't fit."""
    path = locate_weights(source)
    _checked_digest(path, source, expected_digest)
    try:
        report = load_weights(model, path, layout=layout, head=head)
    except InputError as error:
        raise InputError(
            f"model.weights={shown(source)}: {error} (layout and head are set by model.weights_layout and "
            f"model.weights_head)"
        ) from error
    resized = "".join(f", {name} resized from {before} to {now}" for name, (before, now) in report.resized.items())
    resized += "".join(f", {line}" for line in describe_fixed_positions(model))
    fresh = ", fresh head" if head == "fresh" else ""
    ignored = f", {len(report.ignored)} tensors ignored" if report.ignored else ""
    return f"{shown(source)}: {report.num_tensors} tensors in {report.layout}'s layout{resized}{fresh}{ignored}"


def resize_to_fit(model: nn.Module, state: dict[str, Any], prefix: str) -> None:
    """Bring position embeddings and relative biases in `state`, whose names begin with `prefix`, to the model's resolution,
    and say so in a line, as of fixed embeddings that the model has computed so.

    InputError where another tensor has another shape than in the model.
    """
    resized: dict[str, Grids] = {}
    for name, live in model.state_dict().items():
        saved = state.get(prefix + name)
        if saved is None or saved.shape == live.shape:
            continue
        if not can_be_resized(name):
            raise InputError(
                f"--ckpt_path: {name} is {tuple(saved.shape)} in the checkpoint and {tuple(live.shape)} in the model; "
                f"model.arch, its options and data.num_classes must be those of the checkpoint's run"
            )
        state[prefix + name], resized[name] = resize(name, saved, live.shape)
    said = describe_fixed_positions(model)
    if resized:
        (name, (before, after)), more = next(iter(resized.items())), len(resized) - 1
        others = f", and {more} more tensors" if more else ""
        said.append(f"{name} resized from {before[0]}x{before[1]} to {after[0]}x{after[1]}{others}")
    if said and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        say(f"checkpoint: {', '.join(said)}")


def describe_fixed_positions(model: nn.Module) -> list[str]:
    """A line where the model's fixed position embeddings are those of another grid than its own."""
    config: Any = getattr(model, "config", None)
    grid = getattr(config, "posemb_grid", None)
    if grid in (None, getattr(config, "grid", None)):
        return []
    return [f"fixed positions between those of a {grid}x{grid} grid, for {config.grid}x{config.grid}"]


def options_for_weights(
    source: str, arch: str, options: dict[str, Any] | None, image_size: int, runs: Path
) -> dict[str, Any] | None:
    """model_options of a network that starts from the weights `source`: fixed position embeddings keep the grid of the run
    that they are of (`keep_position_grid`). Weights of no run leave the options as they are. Where the run is gone, what the
    newest run below `runs` from the same source has recorded counts. InputError as in `build_model`."""
    if is_remote(source) or fixed_position_grid(arch, options, image_size) is None:
        return options
    from vitlight.training.found_run import read_experiment, run_of  # which asks this module for digests

    trained: Mapping[str, Any] | None = None
    try:
        run = run_of(locate_weights(source))
        trained = None if run is None else read_experiment(run)
    except InputError:
        trained = _recorded_experiment(source, runs)
    return options if trained is None else keep_position_grid(arch, options, image_size, trained)


def weights_digest(source: str, expected: str | None, runs: Path) -> str:
    """Digest of what `source` holds. Where it can't be had any more it is the `expected` one, or what the newest run below
    `runs` from the same source has recorded: enough to find that run and resume it. InputError where nothing is known."""
    try:
        path = locate_weights(source)
    except InputError:
        known = expected or _recorded_digest(source, runs)
        if known is None:
            raise
        return known
    return _checked_digest(path, source, expected)


def _recorded_digest(source: str, runs: Path) -> str | None:
    recorded = _recorded_experiment(source, runs)
    return None if recorded is None else str(recorded["model"]["weights_digest"])


def _recorded_experiment(source: str, runs: Path) -> dict[str, Any] | None:
    """The settings of the newest run below `runs` that starts from `source`."""
    for path in sorted(runs.glob("*/experiment.yaml"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        settings: dict[str, Any] = yaml.safe_load(path.read_text())
        if settings["model"].get("weights") == source and settings["model"].get("weights_digest"):
            return settings
    return None


@functools.lru_cache(maxsize=64)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of one file, or of the digests of several. Remembered for as long as sizes and times stay: a sweep asks once a cell,
    and reading takes seconds a gigabyte."""
    digests = []
    for path, _, _ in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "blake2b").hexdigest()[:32])
    if len(digests) == 1:
        return digests[0]
    return hashlib.blake2b("\n".join(digests).encode(), digest_size=16).hexdigest()

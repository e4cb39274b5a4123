"""What defines a run's result, and the short hash of it that names the run's directory."""

import hashlib
import json
from typing import Any

from jsonargparse import Namespace

__all__ = ["lineage_id", "run_id", "trunk_id"]

# The settings of the trainer that take part in the result; devices, loggers and the like do not.
_TRAINER_IDENTITY = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "sync_batchnorm")
_DATA_NOT_IDENTITY = (
    *("train", "test", "evaluation_sets", "index_dir", "cache_dir", "cache_gib", "num_workers", "shared_loader"),
    *("eval_batch_size", "max_skipped_samples"),
)
# How the same mathematics is computed: at most the rounding differs, as it does between devices.
_MODEL_NOT_IDENTITY = ("compile", "memory_format", "activation_checkpointing")
# Of the schedule: what matters in the cooldown alone, and the warm-up's length, which counts in images.
_HORIZON_ONLY = (
    *("cooldown_samples", "cooldown_fraction", "cooldown_shape", "final_fraction", "warmup_samples", "warmup_fraction"),
)
_WEIGHTS = ("weights", "weights_digest", "weights_layout", "weights_head")


def run_id(settings: Namespace, data_digest: str, weights_digest: str | None, extends: str | None = None) -> str:
    """Twelve hex digits of the settings without paths, devices and loggers; data and weights count by their digests.

    extends: the id of the run that this one continues beyond its horizon.
    """
    identity = _identity(settings, data_digest, weights_digest)
    return _digest(identity | {"extends": extends} if extends is not None else identity)


def trunk_id(settings: Namespace, data_digest: str, weights_digest: str | None, warmup_samples: float) -> str:
    """Of what runs under a schedule with a cooldown have in common before it, whatever their durations."""
    identity = _identity(settings, data_digest, weights_digest)
    model = {name: value for name, value in identity["model"].items() if name != "duration"}
    schedule = {name: value for name, value in model["schedule"].items() if name not in _HORIZON_ONLY}
    model["schedule"] = schedule | {"warmup": warmup_samples}
    return _digest(identity | {"model": model})


def lineage_id(settings: Namespace, data_digest: str, weights_digest: str | None) -> str:
    """Of all that an extension has to have in common with the run it extends: everything but duration and schedule."""
    identity = _identity(settings, data_digest, weights_digest)
    model = {name: value for name, value in identity["model"].items() if name not in ("duration", "schedule")}
    return _digest(identity | {"model": model})


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()


def _identity(settings: Namespace, data_digest: str, weights_digest: str | None) -> dict[str, Any]:
    plain = _plain(settings)
    model = {name: value for name, value in plain["model"].items() if name not in (*_MODEL_NOT_IDENTITY, *_WEIGHTS)}
    model["model_options"] = _one_spelling(model["model_options"])
    if weights_digest is not None:
        named = {name: plain["model"][name] for name in ("weights_layout", "weights_head")}
        model["weights"] = {"digest": weights_digest, **named}
    return {
        "seed": plain["seed_everything"],
        "data_digest": data_digest,
        "data": {name: value for name, value in plain["data"].items() if name not in _DATA_NOT_IDENTITY},
        "model": model,
        "trainer": {name: plain["trainer"][name] for name in _TRAINER_IDENTITY},
    }


def _one_spelling(value: Any) -> Any:
    """Whole numbers as integers, at any depth: options have no types to settle 0 or 0.0, and W&B's server, which a sweep's
    values pass through, makes 0 of 0.0."""
    if isinstance(value, dict):
        return {name: _one_spelling(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_one_spelling(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)

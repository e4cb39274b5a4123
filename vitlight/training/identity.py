"""What defines a run's result, and the short hash of it that names the run's directory."""

import hashlib
import json
from typing import Any

from jsonargparse import Namespace

__all__ = ["run_id"]

# The settings of the trainer that take part in the result; devices, loggers and the like do not.
_TRAINER_IDENTITY = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "sync_batchnorm")
_DATA_NOT_IDENTITY = (
    *("train", "test", "index_dir", "cache_dir", "cache_gib", "num_workers", "eval_batch_size", "max_skipped_samples"),
)
# How the same mathematics is computed: at most the rounding differs, as it does between devices.
_MODEL_NOT_IDENTITY = ("compile", "memory_format", "activation_checkpointing")
_WEIGHTS = ("weights", "weights_digest", "weights_layout", "weights_head")


def run_id(settings: Namespace, data_digest: str, weights_digest: str | None) -> str:
    """Twelve hex digits of the settings without paths, devices and loggers; data and weights count by their digests."""
    plain = _plain(settings)
    model = {name: value for name, value in plain["model"].items() if name not in (*_MODEL_NOT_IDENTITY, *_WEIGHTS)}
    if weights_digest is not None:
        named = {name: plain["model"][name] for name in ("weights_layout", "weights_head")}
        model["weights"] = {"digest": weights_digest, **named}
    identity = {
        "seed": plain["seed_everything"],
        "data_digest": data_digest,
        "data": {name: value for name, value in plain["data"].items() if name not in _DATA_NOT_IDENTITY},
        "model": model,
        "trainer": {name: plain["trainer"][name] for name in _TRAINER_IDENTITY},
    }
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)

"""Fields of an architecture's config as a command line gives them."""

import json
from collections.abc import Collection
from typing import Any

from vitlight.errors import InputError

__all__ = ["read_options"]


def read_options(pairs: Collection[str], elsewhere: Collection[str]) -> dict[str, Any]:
    """`key=value` pairs, each value as JSON where it is that, else as text: pool=gap, layer_scale=1e-5, qk_norm=true.

    elsewhere: Fields that the command has options of their own for. InputError for one of these, and for what is no pair.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InputError(f"--option {pair} is not KEY=VALUE")
        if key in elsewhere:
            raise InputError(f"--option {pair} has an option of its own: --{key.replace('_', '-')} {value}")
        try:
            options[key] = json.loads(value.lower() if value.lower() in ("true", "false", "null") else value)
        except ValueError:
            options[key] = value
    return options

"""The one exception that means "the input is wrong": the command line prints it as one line and exits with 2."""

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "did_you_mean"]


class InputError(ValueError):
    """Bad input from a user. The message is one line that names the value, the rule and the setting to change."""


def did_you_mean(name: str, options: Iterable[str], count: int = 3) -> str:
    """`; did you mean a, b or c?` with the names nearest to `name`, or an empty string where none is near."""
    near = difflib.get_close_matches(name, sorted(options), n=count, cutoff=0.5)
    if not near:
        return ""
    listed = near[0] if len(near) == 1 else f"{', '.join(near[:-1])} or {near[-1]}"
    return f"; did you mean {listed}?"

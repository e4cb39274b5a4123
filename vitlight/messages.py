"""What vitlight says beside its results."""

import sys

__all__ = ["say"]


def say(line: str) -> None:
    """One line on standard error, in one write: `print` makes two, and the lines of ranks that share a log would mix."""
    sys.stderr.write(f"{line}\n")

"""How a run under way is asked to end for good: a file in its directory, which it looks for where it logs and evaluates."""

from pathlib import Path

__all__ = ["end_request_path", "read_end_request"]


def end_request_path(run_dir: Path) -> Path:
    """A line of text, the reason; written whole, by anybody, wherever the run is."""
    return run_dir / "end_early.txt"


def read_end_request(run_dir: Path) -> str | None:
    """The reason, or None where nobody asks."""
    try:
        text = end_request_path(run_dir).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    return " ".join(text.split()) or "asked to end early"

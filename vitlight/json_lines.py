"""JSON lines that another process may be writing, as metrics.jsonl of a run."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["read_rows"]


def read_rows(path: Path, tail_bytes: int | None = None) -> list[dict[str, Any]]:
    """The whole rows of a file, in order; none where there is no file. tail_bytes: those in the last so many bytes alone.

    A row that is still being written, or that the tail's edge cuts, is left out, and so is what is no JSON object.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = 0 if tail_bytes is None else max(0, size - tail_bytes)
            file.seek(start)
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return []
    rows = []
    for line in lines[1:] if start else lines:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]

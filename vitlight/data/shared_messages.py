"""What a cell and a shared loader tell each other: Attach, then Attached or Refused; then Want, Given and Free."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitlight.data.plan import BatchRequest

__all__ = ["Attach", "Attached", "Free", "Given", "Refused", "Want"]


@dataclass(frozen=True)
class Attach:
    """A rank of a cell (`cell`: its number, as the runner announced it) will take the steps start <= s < stop.

    key, batches: what it decodes, by name and as pickled ImageBatches. num_rows: of its own part of each global batch of
    batch_rows, each of row_bytes.
    """

    cell: str
    code: tuple[str, ...]
    key: str
    batches: bytes
    start: int
    stop: int
    num_rows: int
    batch_rows: int
    row_bytes: int


@dataclass(frozen=True)
class Attached:
    """Followed by the descriptor of the ring. The rank asks for `ahead` steps at a time, in chunks of chunk_rows rows of the
    global batch."""

    ahead: int
    chunk_rows: int
    slot_bytes: int


@dataclass(frozen=True)
class Refused:
    reason: str


@dataclass(frozen=True)
class Want:
    """chunks: of the next step, by their first row."""

    step: int
    chunks: Mapping[int, BatchRequest]


@dataclass(frozen=True)
class Free:
    """Nothing is held of the step any more."""

    step: int


@dataclass(frozen=True)
class Given:
    """The step lies in `slot` until it is freed; told: labels, of each chunk. slot None: the rank has to decode it itself.
    is_scarce: slots are few, so pixels should be copied at once."""

    step: int
    slot: int | None
    told: Mapping[int, Mapping[str, Any]]
    is_scarce: bool

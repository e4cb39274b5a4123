"""What can be wrong with a shard: one vocabulary for the index, which stops at the first fault, and for `data verify`."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Fault", "FaultError", "Kind"]


class Kind(StrEnum):
    """The kinds of faults, as tables and JSON name them."""

    MISSING_SHARD = "missing shard"
    UNREADABLE_SHARD = "unreadable shard"
    CHANGED_SHARD = "changed shard"
    TRUNCATED_TAR = "truncated tar"
    DAMAGED_TAR = "damaged tar"
    TRAILING_DATA = "trailing data"
    SPLIT_SAMPLE = "split sample"
    DUPLICATE_KEY = "duplicate key"
    CHANGED_SAMPLE = "changed sample"
    NO_IMAGE = "no image"
    SEVERAL_IMAGES = "several images"
    EMPTY_IMAGE = "empty image"
    BAD_IMAGE = "undecodable image"
    NO_LABEL = "no label"
    BAD_LABEL = "bad label"
    UNKNOWN_CLASS = "unknown class name"
    LABEL_OUT_OF_RANGE = "label out of range"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: with the shard as a whole (key None) or with one sample. `detail` is one line."""

    kind: Kind
    shard: str
    key: str | None
    detail: str

    def __str__(self) -> str:
        sample = "" if self.key is None else f"sample {self.key!r}: "
        return f"{self.shard}: {sample}{self.detail}"


class FaultError(Exception):
    """Carries what is wrong from where it is seen to where shard and key are known."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail

"""The bound with simplejpeg's fast upsampling, which changes the pixels (nearest instead of triangular chroma)."""

from peers import decode_only
from peers.case import Case

SETTINGS = "the same with fastupsample=True"
DISTRIBUTIONS = decode_only.DISTRIBUTIONS
FLAGS = {"fastupsample": True}


def rate(case: Case, seconds: float) -> tuple[float, float]:
    return decode_only.rate(case, seconds, FLAGS)


def stage_seconds(case: Case) -> dict[str, float]:
    return decode_only.stage_seconds(case, FLAGS)

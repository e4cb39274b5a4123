"""The axes of the report's charts, and how families are drawn, on the page and in the PNG figures alike."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vitlight.analysis.quantities import FLOP_CONVENTION

__all__ = ["CHARTS", "Chart", "FamilyStyle", "family_key", "family_styles"]


@dataclass(frozen=True)
class Chart:
    """Accuracy against one axis.

    column: of the summary table, times `factor`; published: the same of a published result, None where nobody states
    it. connects: a line runs through the model sizes of one family at one data size, or through the data sizes of
    one model. is_gain: more of it is better (a rate), so that the Pareto front looks for more and not for less.
    """

    key: str
    title: str
    axis: str
    column: str
    published: str | None
    connects: Literal["models", "data"]
    factor: float = 1
    is_gain: bool = False

    @property
    def file(self) -> str:
        return f"accuracy_vs_{self.key}.png"


CHARTS = (
    Chart(
        "forward_flops",
        "forward FLOPs",
        f"forward FLOPs per image ({FLOP_CONVENTION})",
        "forward_macs",
        "forward_macs",
        "models",
        2,
    ),
    Chart("params", "parameters", "parameters", "params", "params", "models"),
    Chart(
        "train_flops",
        "training FLOPs",
        f"training FLOPs ({FLOP_CONVENTION})",
        "train_flops",
        "train_flops",
        "data",
    ),
    Chart(
        "images",
        "training images",
        "distinct training images",
        "num_train_samples",
        "num_train_samples",
        "data",
    ),
    Chart(
        "device_hours",
        "device-hours",
        "measured device-hours of training, mean over seeds",
        "device_seconds_mean",
        None,
        "data",
        1 / 3600,
    ),
    Chart(
        "images_per_second",
        "images/s",
        "training images a second, all devices together, mean over seeds",
        "images_per_second_mean",
        None,
        "models",
        is_gain=True,
    ),
)


@dataclass(frozen=True)
class FamilyStyle:
    """How a family is drawn: hex colours on light and dark ground, and a marker (the shape's name on the page)."""

    light: str
    dark: str
    marker: str


# Okabe and Ito's colour-blind safe set, its pale members darkened on light ground and its dark ones lifted on dark
# ground, so that each has 3:1 contrast or more. Shape tells families apart without any colour.
_STYLES = (
    FamilyStyle("#0072b2", "#56b4e9", "circle"),
    FamilyStyle("#d55e00", "#f2894a", "square"),
    FamilyStyle("#00875f", "#35c69b", "triangle"),
    FamilyStyle("#b0568c", "#e39ac6", "diamond"),
    FamilyStyle("#8a6a00", "#e6b422", "pentagon"),
    FamilyStyle("#5b4fbf", "#a99ff0", "wedge"),
)
# More families than colours that can be told apart: the rest is grey, and named by its label and its point's numbers.
_REST = tuple(FamilyStyle("#6b717a", "#9aa2ad", style.marker) for style in _STYLES)
_OWN_FAMILIES = ("vit", "coatnet", "resnet")  # keep their colour on every page, whoever else is there


def family_key(family: object) -> str:
    """What a family is called on a page, so that a paper's ViT and ours share a colour and a filter; one that a table leaves
    out has a name, too."""
    if not isinstance(family, str):
        return "not stated"
    return family.lower() if family.lower() in _OWN_FAMILIES else family


def family_styles(families: Iterable[str]) -> dict[str, FamilyStyle]:
    """Styles by family, in the order to list them: vitlight's own first, then the others by name. Where these are more
    than the colours left, those that occur most often in `families` have the colours."""
    counts = Counter(map(family_key, families))
    own = [family for family in _OWN_FAMILIES if family in counts]
    others = sorted(set(counts) - set(own))
    left = list(_STYLES[len(_OWN_FAMILIES) :])
    coloured = sorted(sorted(others, key=lambda family: -counts[family])[: len(left)])
    grey = [family for family in others if family not in coloured]
    styles = {family: _STYLES[_OWN_FAMILIES.index(family)] for family in own}
    styles |= dict(zip(coloured, left, strict=False))
    return styles | {family: _REST[i % len(_REST)] for i, family in enumerate(grey)}

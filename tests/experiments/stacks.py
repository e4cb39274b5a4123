"""The experiments as they are meant to be run: base.yaml, a recipe, and one of the recipe's deltas."""

import re
from pathlib import Path

from tests.conftest import ROOT
from vitlight.training.experiment import ExperimentCLI

__all__ = ["EXPERIMENTS", "files_of", "parse", "recipes", "stacks"]

EXPERIMENTS = ROOT / "experiments"


def recipes() -> list[str]:
    """Names of the files that are whole with base.yaml: those that name their data."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml") if re.search(r"^  train: ", path.read_text(), re.M))


def stacks() -> list[str]:
    """Every recipe, as `deit3`, and every delta over each recipe that its first line names, as `deit3 + deit3/b16`."""
    names = recipes()
    for path in sorted(EXPERIMENTS.glob("*/*.yaml")):
        if path.parent.name == "evaluation_sets":  # values of that setting of `data`
            continue
        under = re.match(r"# Over ((?:\w+\.yaml(?: or )?)+): ", path.read_text())
        assert under is not None, f"{path} doesn't open with `# Over RECIPE.yaml: `"
        names += [f"{recipe} + {path.parent.name}/{path.stem}" for recipe in re.findall(r"(\w+)\.yaml", under[1])]
    return names


def files_of(stack: str) -> list[Path]:
    return [EXPERIMENTS / f"{name}.yaml" for name in ("base", *stack.split(" + "))]


def parse(stack: str, *more: str) -> ExperimentCLI:
    """The command line of a stack, with ViT-S/16 where the recipe leaves the architecture open."""
    files = files_of(stack)
    names_arch = any(re.search(r"\barch:", path.read_text()) for path in files)
    arch = [] if names_arch else ["--model.arch=vit_s16"]
    return ExperimentCLI(["fit", *(f"--config={path}" for path in files), *arch, *more])

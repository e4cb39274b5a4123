"""Every experiment against what its source prints, before anything runs."""

import re
from functools import cache
from itertools import takewhile

import pytest
import torch
import yaml

from tests.conftest import ROOT
from tests.experiments.published import DEPARTURES, PUBLISHED
from tests.experiments.stacks import EXPERIMENTS, files_of, parse, recipes, stacks
from tests.experiments.view import IMAGES, PLAIN, view
from tests.reference_libraries import reference
from vitlight.cost import forward_macs, train_flops
from vitlight.models import build_model

# Our own, with no source to be held against.
OWN = ["fashion_mnist", "quickstart"]
STACKS = [stack for stack in stacks() if stack not in OWN]


def over(table: dict, stack: str) -> dict:
    """A stack's row on that of its recipe."""
    return {**table.get(stack.split(" + ")[0], {}), **table.get(stack, {})}


@cache
def network(stack: str):
    """The stack's network on the meta device, and the side of its images."""
    cli = parse(stack)
    model, data = cli.build_model_settings(), cli.build_data()
    if model["arch"].startswith("timm:"):
        reference("timm")
    with torch.device("meta"):
        return build_model(
            model["arch"], data.num_classes, data.image_size, **(model["model_options"] or {})
        ), data.image_size


def note(name: str) -> str:
    """The comment that a file opens with, in one line."""
    lines = takewhile(lambda line: line.startswith("#"), (EXPERIMENTS / f"{name}.yaml").read_text().splitlines())
    return " ".join(line.removeprefix("#").strip() for line in lines)


def test_every_recipe_and_delta_has_a_row():
    assert sorted(PUBLISHED) == sorted(STACKS)
    assert set(DEPARTURES) <= set(PUBLISHED)


@pytest.mark.parametrize("stack", STACKS)
def test_settings_are_the_published_ones(stack):
    expected = {**PLAIN, **over(PUBLISHED, stack), **over(DEPARTURES, stack)}
    seen = view(stack)
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        is_number = isinstance(value, float) or (isinstance(value, list) and value)
        assert seen[name] == (pytest.approx(value, rel=1e-4) if is_number else value), name


@pytest.mark.parametrize("stack", sorted(DEPARTURES))
def test_a_departure_is_told_in_the_note_with_the_published_value(stack):
    text = note(stack.split(" + ")[-1])
    for name in DEPARTURES[stack].keys() - {"steps"}:
        assert str(DEPARTURES[stack][name]) in text
        assert str(over(PUBLISHED, stack)[name]) in text


@pytest.mark.parametrize("name", [name for name in recipes() if name not in OWN])
def test_a_recipe_opens_with_its_lab_note(name):
    text = note(name)
    assert f"--config experiments/base.yaml --config experiments/{name}.yaml" in text
    assert re.search(r"arXiv \d{4}\.\d{5}|torchvision's IMAGENET1K", text)
    assert re.search(r"Expected.* [\d.]+ %.*not run here", text)
    assert re.search(r"Differs from (the paper|torchvision): ", text)


@pytest.mark.parametrize("name", [name for name in recipes() if name not in OWN])
def test_the_cost_in_the_note_is_the_counted_one(name):
    model, side = network(name)
    row = view(name)
    flops = train_flops(forward_macs(model, side), row["steps"] * row["batch"])
    assert f"Cost: {flops:.1e}".replace("e+", "e") + " training FLOPs (FLOP = half a MAC)" in note(name)


def test_the_page_of_recipes_lists_each_with_its_cost_and_deltas():
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+e\d+) \|(.*)\|$", (ROOT / "docs" / "recipes.md").read_text(), re.M)
    listed = {name: (cost, set(re.findall(r"`(\w+)`", deltas))) for name, cost, deltas in rows}
    assert listed == {
        name: (
            re.search(r"Cost: ([\d.]+e\d+)", note(name))[1],
            {stack.rpartition("/")[2] for stack in STACKS if stack.startswith(f"{name} + ")},
        )
        for name in recipes()
        if name not in OWN
    }


@pytest.mark.parametrize("stack", [stack for stack in STACKS if " + " in stack])
def test_a_delta_is_small_and_changes_the_recipe(stack):
    delta = files_of(stack)[-1].read_text().splitlines()
    assert len([line for line in delta if not line.startswith("#")]) <= 6
    changed = {name for name, value in view(stack).items() if value != view(stack.split(" + ")[0])[name]}
    is_default = stack in (
        "augreg_in1k + augreg/medium2",
        "augreg_in21k + augreg/light2",
    )  # those of the recipes themselves
    assert bool(changed) != is_default
    model, _ = network(stack)
    assert next(model.parameters()).device.type == "meta"


def test_settings_that_the_file_names_are_those_that_differ_from_the_base():
    inherited = yaml.safe_load((EXPERIMENTS / "base.yaml").read_text())
    for name in recipes():
        settings = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())
        same = [
            f"{group}.{key}"
            for group in settings
            for key, value in settings[group].items()
            if inherited.get(group, {}).get(key, object()) == value
        ]
        assert same == [], name


def test_the_sets_have_the_sizes_that_the_warm_ups_and_steps_are_counted_with():
    assert IMAGES[1000] == 1_281_167  # 5 epochs are the warm-up of 6,405,835 images in several recipes
    assert round(90 * IMAGES[1000] / 1024) == PUBLISHED["plain_vit_s16"]["steps"]

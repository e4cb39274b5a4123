"""What a look into a network holds, and the files that are written of it."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.analysis.insight.looks import look
from tests.reference_libraries import reference
from vitlight.analysis.insight import inspect_network, write_insight
from vitlight.analysis.insight.numbers import scalars
from vitlight.errors import InputError
from vitlight.models import build_model


def test_a_vit_has_all_but_relative_biases() -> None:
    insight = look("vit_nano1")
    assert insight.missing == ("vit_nano1 has no relative biases.",)
    study = insight.attention
    assert study is not None and study.rollout is not None
    assert study.readout == "class token"
    assert [tuple(each.distance.shape) for each in study.layers] == [(2,)] * 3
    assert study.layers[0].maps.shape == (5, 2, 7, 7)
    assert study.rollout.shape == (5, 7, 7)
    ratio = study.rollout.flatten(1).sum(1)  # the rest is the class token's own
    assert bool((ratio > 0).all() and (ratio < 1).all())
    assert insight.similarity is not None and insight.similarity.shape == (7, 7, 7, 7)
    assert insight.components is not None and len(insight.components[0]) == 28
    assert len(insight.fields) == 4


def test_a_coatnet_has_all_but_position_embeddings() -> None:
    insight = look("coatnet_nano1")
    assert insight.missing == ("coatnet_nano1 has no position embedding.",)
    study = insight.attention
    assert study is not None and study.rollout is not None
    assert study.rollout.shape == (5, 7, 7), "over the patches of the first transformer stage"
    torch.testing.assert_close(study.rollout.flatten(1).sum(1), torch.ones(5))
    assert [bias.tables.shape[0] for bias in insight.biases] == [2, 3]


def test_a_resnet_has_filters_and_receptive_fields() -> None:
    insight = look("resnet_nano1")
    assert insight.attention is None
    assert insight.missing == (
        "resnet_nano1 has no attention that can be read.",
        "resnet_nano1 has no position embedding.",
        "resnet_nano1 has no relative biases.",
    )
    assert insight.filters is not None and len(insight.fields) == 3


def test_distances_are_means_over_images() -> None:
    whole = look("vit_nano1", num_images=5).attention
    assert whole is not None
    torch.manual_seed(0)
    several = [look("vit_nano1", num_images=5, num_shown=shown).attention for shown in (1, 5)]
    assert several[0] is not None and several[1] is not None
    for one, other, third in zip(whole.layers, several[0].layers, several[1].layers, strict=True):
        assert torch.equal(one.distance, other.distance) and torch.equal(one.distance, third.distance)
        assert other.maps.shape[0] == 1 and third.maps.shape[0] == 5


def test_layers_and_heads_are_chosen_and_rollout_is_left_out_for_it() -> None:
    study = (insight := look("vit_nano1", layers=[-1], heads=[1])).attention
    assert study is not None
    assert [(each.layer.index, each.heads) for each in study.layers] == [(2, (1,))]
    assert study.rollout is None
    assert "Rollout goes through all layers and heads, and only some were asked for." in insight.missing
    all_of_it = look("vit_nano1").attention
    assert all_of_it is not None
    torch.testing.assert_close(study.layers[0].distance[0], all_of_it.layers[2].distance[1])


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        (
            "resnet_nano1",
            {"only": ["attention"]},
            "resnet_nano1 has no attention that can be read: leave attention out",
        ),
        ("vit_nano1", {"only": ["biases"]}, "vit_nano1 has no relative biases: leave biases out of --only"),
        (
            "resnet_nano1",
            {"only": ["biases", "positions"]},
            "resnet_nano1 has no position embedding and no relative biases: leave positions and biases out of --only",
        ),
        (
            "resnet_nano1",
            {"only": ["attention", "filters"], "layers": [0]},
            "--layers chooses among attention, and resnet_nano1 has no attention",
        ),
        ("vit_nano1", {"only": ["filter"]}, "--only: 'filter' is none of attention, filters, positions, biases"),
        ("resnet_nano1", {"layers": [0]}, "--layers chooses among attention, and resnet_nano1 has no attention"),
        ("vit_nano1", {"only": ["filters"], "heads": [0]}, "--heads chooses among attention, and --only leaves"),
        ("vit_nano1", {"layers": [3]}, "--layers: 3 is none of the 3 attention layers 0 to 2"),
    ],
)
def test_what_is_not_there_gets_one_clear_line(arch: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        look(arch, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "missing"),
    [
        ("vit_nano1", ("vit_nano1 has no relative biases.",)),
        ("coatnet_nano1", ("coatnet_nano1 has no position embedding.",)),
        ("resnet_nano1", ("resnet_nano1 has no position embedding.", "resnet_nano1 has no relative biases.")),
    ],
)
def test_parts_that_are_asked_for_and_not_there_are_said_where_others_are(arch: str, missing: tuple[str, ...]) -> None:
    insight = look(arch, only=["filters", "positions", "biases"])
    assert insight.missing == missing and insight.filters is not None
    assert (insight.similarity is None, not insight.biases) == ("position" in str(missing), "biases" in str(missing))
    assert insight.attention is None and not insight.fields


def test_stages_that_give_no_map_are_said() -> None:
    reference("timm")
    sizes = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    network = build_model("timm:beit_base_patch16_224", image_size=32, options=sizes)
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    given = {"name": "a", "arch": "beit", "source": "a", "image_size": 32, "only": ["filters", "receptive_field"]}
    insight = inspect_network(network, pixels.float(), pixels, **given)
    assert insight.missing == ("beit has no stages whose receptive field can be measured.",) and not insight.fields


def test_float64_is_of_the_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's GPUs have none: what becomes float64 has come from the device before."""

    class OnHost(torch.Tensor):
        pass

    def double(tensor: torch.Tensor) -> torch.Tensor:
        assert isinstance(tensor, OnHost), "a tensor on the device becomes float64"
        return tensor.to(torch.float64)

    plain = look("vit_nano1")
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor.detach().as_subclass(OnHost))
    monkeypatch.setattr(torch.Tensor, "double", double)
    insight = look("vit_nano1")
    assert insight.attention is not None and plain.attention is not None
    for one, other in zip(insight.attention.layers, plain.attention.layers, strict=True):
        assert one.distance.tolist() == other.distance.tolist() and one.entropy.tolist() == other.entropy.tolist()
    assert [field.radius_90 for field in insight.fields] == [field.radius_90 for field in plain.fields]


def test_parts_that_need_images_say_so() -> None:
    network = build_model("vit_nano1", image_size=28)
    given = {"name": "a", "arch": "vit_nano1", "source": "a", "image_size": 28}
    with pytest.raises(InputError, match="attention and receptive_field need images: give --images"):
        inspect_network(network, None, None, **given)
    insight = inspect_network(network, None, None, only=["filters", "positions"], **given)
    assert insight.filters is not None and insight.similarity is not None and not insight.fields


def test_files_of_one_network(tmp_path: Path) -> None:
    insight = look("coatnet_nano1")
    page, pngs = write_insight([insight], tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    drawn = ["attention_distance", "attention_entropy", "attention_maps", "biases", "components", "filters"]
    assert names == sorted(
        [f"{name}.png" for name in (*drawn, "receptive_fields")]
        + ["insight.html", "insight.json", "attention.csv", "receptive_field.csv"]
    )
    assert page.name == "insight.html" and {path.name for path in pngs} == {n for n in names if n.endswith("png")}
    for path in pngs:
        with Image.open(path) as picture:
            assert min(picture.size) > 100 and len(picture.convert("L").getcolors() or range(999)) > 8
    with (tmp_path / "out" / "attention.csv").open() as file:
        rows = list(csv.DictReader(file))
    study = insight.attention
    assert study is not None
    assert [(row["layer"], row["head"], row["grid"]) for row in rows] == [
        *(("0", str(head), "7x7") for head in range(2)),
        *(("1", str(head), "4x4") for head in range(3)),
    ]
    assert float(rows[3]["distance_px"]) == pytest.approx(float(study.layers[1].distance[1]), rel=1e-5)
    (told,) = json.loads((tmp_path / "out" / "insight.json").read_text())
    assert told["arch"] == "coatnet_nano1" and told["num_images"] == 5
    assert told["attention"][4]["entropy_nats"] == pytest.approx(float(study.layers[1].entropy[2]), rel=1e-5)
    assert [stage["stage"] for stage in told["receptive_field"]] == ["stem", "stage 1", "stage 2", "stage 3"]


def test_the_same_look_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_insight([look("vit_nano1"), look("resnet_nano1")], tmp_path / folder)
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert Path("vit_nano1/attention_maps.png") in names and Path("receptive_fields.png") in names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_two_networks_of_one_name_have_folders_of_their_own(tmp_path: Path) -> None:
    one, other = look("resnet_nano1", name="../runs/a"), look("resnet_nano1", name="../runs/a")
    _, pngs = write_insight([one, other], tmp_path / "out")
    assert {path.parent.name for path in pngs} == {"runs_a", "runs_a_2", "out"}


def test_numbers_for_curves_are_means_over_heads() -> None:
    insight = look("coatnet_nano1", channels=1)
    found = scalars(insight)
    assert insight.attention is not None
    wanted = float(insight.attention.layers[0].distance.mean())
    assert found["insight/attention_distance_px/layer_00"] == pytest.approx(wanted)
    assert found["insight/receptive_radius_90_px/stage_3"] == insight.fields[3].radius_90
    assert len(found) == 2 * 2 + 4 * 2 and all(math.isfinite(value) for value in found.values())

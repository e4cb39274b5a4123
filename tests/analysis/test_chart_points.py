"""What the charts are given: own cells, published results, and nothing where nobody states a number."""

from pathlib import Path

import pandas as pd
import pytest

from tests.analysis.fake_runs import result, write_grid, write_run
from vitlight.analysis import load_runs, pareto_front, summarise
from vitlight.analysis.chart_points import chart_points, drawn_charts, published_group, published_points
from vitlight.analysis.links import cell_links, run_link
from vitlight.analysis.published import load_published


def test_an_unknown_number_is_a_gap_and_no_point(tmp_path: Path) -> None:
    write_run(
        tmp_path, result("vit_nano1", 500, 0, device_seconds=None, own_device_seconds=None, images_per_second=None)
    )
    write_run(tmp_path, result("vit_nano2", 500, 0))
    first, second = chart_points(summarise(load_runs(tmp_path)))
    assert (first["x"]["device_hours"], first["x"]["images_per_second"]) == (None, None)
    run = result("vit_nano2", 500, 0)
    assert second["x"]["device_hours"] == pytest.approx(run["device_seconds"] / 3600)
    assert second["x"]["images_per_second"] == pytest.approx(run["images_per_second"])
    assert len(drawn_charts([first, second])) == 6
    assert [chart.key for chart in drawn_charts([first])] == ["forward_flops", "params", "train_flops", "images"]


def test_published_results_are_points_of_their_group() -> None:
    table = load_published("models")
    points = published_points(table, first_id=100)
    stated = table[table["top1"].notna()]
    assert [point["id"] for point in points] == list(range(100, 100 + len(stated)))
    row = stated[
        (stated["variant"] == "CoAtNet-3") & (stated["image_size"] == 224) & (stated["comparable"] == "imagenet1k")
    ]
    (coatnet,) = (point for point in points if point["id"] - 100 == list(stated.index).index(row.index[0]))
    assert (coatnet["arch"], coatnet["family"], coatnet["group"], coatnet["mean"]) == (
        "CoAtNet-3",
        "coatnet",
        "imagenet1k",
        0.845,
    )
    assert coatnet["x"]["forward_flops"] == 2 * 34.7e9  # CoAtNet (arXiv 2106.04803), Table 4: 34.7B multiply-adds
    assert coatnet["runs"] == [{"text": "arXiv 2106.04803", "url": "https://arxiv.org/abs/2106.04803"}]
    assert (coatnet["std"], coatnet["n"], coatnet["label"]) == (None, 1, "CoAtNet-3 @224")
    assert next(point["label"] for point in points if point["arch"] == "Swin-T") == "Swin-T"


# On ImageNet-1k alone at 224 px: CoAtNet and Swin from CoAtNet (arXiv 2106.04803), Tables 4 and 13; ConvNeXt from its
# README. Multiply-adds, parameters, top-1:
#   CoAtNet-0   4.2G  25M 81.6    ConvNeXt-T  4.5G  28M 82.1    Swin-T  4.5G 29M 81.3
#   CoAtNet-1   8.4G  42M 83.3    ConvNeXt-L 34.4G 198M 84.3    Swin-S  8.7G 50M 83.0
#   CoAtNet-2  15.7G  75M 84.1                                  Swin-B 15.4G 88M 83.3
#   CoAtNet-3  34.7G 168M 84.5
HAND_PICKED = (*(f"CoAtNet-{i}" for i in range(4)), "ConvNeXt-T", "ConvNeXt-L", "Swin-T", "Swin-S", "Swin-B")
FRONTS = {
    "forward_flops": ["CoAtNet-0", "ConvNeXt-T", "CoAtNet-1", "CoAtNet-2", "ConvNeXt-L", "CoAtNet-3"],
    "params": ["CoAtNet-0", "ConvNeXt-T", "CoAtNet-1", "CoAtNet-2", "CoAtNet-3"],
}


def test_the_front_around_coatnet_is_the_one_worked_out_by_hand() -> None:
    table = load_published("models").fillna({"comparable": "", "image_size": 0})
    chosen = table["variant"].isin(HAND_PICKED) & (table["image_size"] == 224) & (table["comparable"] == "imagenet1k")
    points = published_points(table[chosen])
    assert len(points) == len(HAND_PICKED) == 9
    for key, members in FRONTS.items():
        front = pareto_front([point["x"][key] for point in points], [point["mean"] for point in points])
        assert [points[i]["arch"] for i in front] == members, key


def test_the_group_names_the_data_and_an_unusual_metric() -> None:
    assert published_group({"comparable": "jft", "metric": "10shot"}) == "jft · 10shot"
    assert published_group({"comparable": "imagenet1k", "metric": "imagenet_top1"}) == "imagenet1k"
    assert published_group({"comparable": pd.NA, "pretrain_data": "mine", "metric": pd.NA}) == "mine"
    assert published_group({}) == "not stated"


def test_training_images_that_are_one_number_for_all_are_no_axis() -> None:
    of_models, of_jft = published_points(load_published("models")), published_points(load_published("scaling_vit"))
    assert {point["x"]["images"] for point in of_models if point["group"] == "imagenet1k"} == {None}
    assert {point["x"]["images"] for point in of_jft} == {3e7, 3e8, 1e9, 3e9}


def test_links_lead_from_the_page_to_every_run(tmp_path: Path) -> None:
    write_grid(tmp_path / "my runs", rungs=(1,), sizes=(500,), seeds=(0, 1))
    runs = load_runs(tmp_path / "my runs")
    summary = summarise(runs)
    page = tmp_path / "out" / "deep"
    links = cell_links(runs, summary, page)
    assert sorted(links) == [0, 1, 2]
    for place, arch in enumerate(summary["arch"]):
        assert [link["text"] for link in links[place]] == [f"seed {seed}, {arch}-500-{seed}" for seed in (0, 1)]
        assert links[place][0]["href"] == f"../../my%20runs/quickstart/{arch}-500-0/"


@pytest.mark.parametrize(
    ("url", "kept"), [("https://wandb.ai/a/b/runs/c", True), ("javascript:alert(1)", False), (pd.NA, False)]
)
def test_only_web_pages_are_linked(tmp_path: Path, url: object, kept: bool) -> None:
    run = pd.Series({"seed": 0, "run_id": "a", "run_dir": str(tmp_path / "gone"), "wandb_url": url}, dtype=object)
    assert run_link(run, tmp_path) == {"text": "seed 0, a"} | ({"url": url} if kept else {})

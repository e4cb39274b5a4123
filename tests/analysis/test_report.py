"""The report as files: whole, self-contained, safe with hostile names, the same for the same runs."""

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.analysis.fake_runs import result, write_grid, write_run
from vitlight.analysis import load_runs, summarise, write_report
from vitlight.analysis.charts import CHARTS, family_styles
from vitlight.analysis.quantities import format_si
from vitlight.analysis.report_data import gather_report
from vitlight.analysis.report_page import build_page
from vitlight.analysis.summary import SUMMARY_COLUMNS
from vitlight.analysis.tables import TABLE_COLUMNS
from vitlight.errors import InputError

HOSTILE = '</script><img src=x onerror="window.hacked=1">\'&amp;\u2028'


def page_data(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def page_of(source: Path, num_bootstrap: int = 0) -> str:
    """The page alone, as if it lay in `out` beside its source."""
    return build_page(gather_report([source], source.parent / "out", num_bootstrap=num_bootstrap))


def test_every_file_is_there_and_its_figures_are_images(tmp_path: Path) -> None:
    page = write_report([write_grid(tmp_path / "runs", rungs=(1, 2), sizes=(500, 2000))], tmp_path / "out" / "deep")
    assert page == tmp_path / "out" / "deep" / "report.html"
    pngs = {f"accuracy_vs_{chart.key}.png" for chart in CHARTS}
    assert {path.name for path in page.parent.iterdir()} == {"report.html", "runs.csv", "summary.csv", *pngs}
    assert len(pngs) == 6
    for name in pngs:
        with Image.open(page.parent / name) as image:
            assert image.size == (1440, 900)
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50, f"{name} is blank"


def test_csv_columns_and_values(tmp_path: Path) -> None:
    flops = 3 * 10**20
    write_run(tmp_path / "runs", result("vit_nano1", 500, 0, train_flops=flops, top1=0.1 + 0.2))
    page = write_report(tmp_path / "runs", tmp_path / "out")
    with (page.parent / "runs.csv").open(newline="") as file:
        (run,) = csv.DictReader(file)
    assert tuple(run) == tuple(TABLE_COLUMNS)
    assert (run["train_flops"], run["top1"], run["reason"], run["params"]) == (str(flops), repr(0.1 + 0.2), "", "50000")
    with (page.parent / "summary.csv").open(newline="") as file:
        (cell,) = csv.DictReader(file)
    assert tuple(cell) == SUMMARY_COLUMNS
    assert (cell["train_flops"], cell["n"], cell["top1_std"], cell["seeds"]) == (str(flops), "1", "", "0")


def test_page_holds_every_cell_with_its_numbers(tmp_path: Path) -> None:
    write_grid(tmp_path / "runs")
    page = page_of(tmp_path / "runs")
    summary = summarise(load_runs(tmp_path / "runs"))
    points = page_data(page)["points"]
    assert len(points) == len(summary) == 27
    for point, (_, cell) in zip(points, summary.iterrows(), strict=True):
        assert (point["arch"], point["images"], point["n"]) == (cell["arch"], cell["num_train_samples"], 2)
        assert (point["mean"], point["std"]) == (cell["top1_mean"], cell["top1_std"])
        assert point["x"] == {
            "forward_flops": 2 * cell["forward_macs"],
            "params": cell["params"],
            "train_flops": cell["train_flops"],
            "images": cell["num_train_samples"],
            "device_hours": cell["device_seconds_mean"] / 3600,
            "images_per_second": cell["images_per_second_mean"],
        }
    assert page.count("FLOP = half a MAC") >= 4


def test_shared_compute_is_counted_once(tmp_path: Path) -> None:
    for seed, own in ((0, 3 * 10**15), (1, 10**15)):
        write_run(tmp_path / "runs", result("vit_nano1", 500, seed, train_flops=3 * 10**15, own_train_flops=own))
    page = page_of(tmp_path / "runs")
    total, shared = format_si(4 * 10**15, "FLOP"), format_si(2 * 10**15, "FLOP")
    assert f"<dd>{total}<small>FLOP = half a MAC, all runs done; {shared} that runs share is counted once" in page


def test_page_loads_nothing(tmp_path: Path) -> None:
    page = write_report(write_grid(tmp_path / "runs", rungs=(1,)), tmp_path / "out").read_text()
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(r"@import|url\(", page)
    beside = {"runs.csv", "summary.csv", *(chart.file for chart in CHARTS)}
    linked = set(re.findall(r'(?:src|href)="([^"]*)"', page)) - {"data:,", *beside}
    assert linked == {f"../runs/quickstart/{path.name}/" for path in (tmp_path / "runs" / "quickstart").iterdir()}


def test_same_runs_same_bytes(tmp_path: Path) -> None:
    write_grid(tmp_path / "runs", rungs=(1,))
    first, second = (write_report(tmp_path / "runs", tmp_path / name).parent for name in ("a", "b"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = result("vit_nano1", 500, 0) | {"arch": HOSTILE, "family": HOSTILE, "commit": HOSTILE, "device": HOSTILE}
    hostile_dir = write_run(tmp_path / "runs", run)
    failed = result("vit_nano1", 500, 1, status="failed", reason=HOSTILE)
    write_run(tmp_path / "runs", failed)
    assert hostile_dir.exists()
    page = page_of(tmp_path / "runs")
    assert "<img" not in page
    assert page.count("</script>") == 2, "the data and the program, closed once each"
    assert page_data(page)["points"][0]["arch"] == HOSTILE


def test_runs_that_failed_or_diverged_are_listed_apart_and_in_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", result("vit_nano1", 500, 0))
    write_run(tmp_path / "runs", result("vit_nano1", 500, 1, status="diverged", reason="loss is NaN", top1=None))
    write_run(tmp_path / "runs", result("vit_nano1", 500, 2, status="failed", reason="out of memory"))
    page = page_of(tmp_path / "runs")
    assert [point["n"] for point in page_data(page)["points"]] == [1]
    apart = page[page.index("<h2>Not counted</h2>") : page.index("<h2>Runs</h2>")]
    assert apart.count("<tr>") == 3
    assert apart.count('<a href="../runs/quickstart/vit_nano1-500-') == 2
    assert "loss is NaN" in apart and "out of memory" in apart
    assert "1 diverged, 1 failed" in page


def test_a_report_without_a_finished_run_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", result("vit_nano1", 500, 0, status="failed", reason="boom"))
    page = write_report(tmp_path / "runs", tmp_path / "out")
    assert "No run has finished yet" in page.read_text()
    assert (page.parent / "accuracy_vs_forward_flops.png").stat().st_size > 1000


def test_no_run_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="no run in"):
        write_report(tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("arch,top1\na,0.61\nb,0.70\nb,0.72\n", {"limits", "runs"}),
        ("arch,family,top1,params,seed\na,vit,0.61,1000,0\na,vit,0.65,1000,1\n", {"charts", "limits", "laws", "runs"}),
        ("arch,top1,status\na,,failed\nb,0.7,done\n", {"limits", "not-counted", "runs"}),
    ],
)
def test_a_table_that_says_little_still_makes_a_page(tmp_path: Path, text: str, sections: set[str]) -> None:
    (tmp_path / "mine.csv").write_text(text)
    page = page_of(tmp_path / "mine.csv", num_bootstrap=5)
    assert set(re.findall(r'<section id="([\w-]+)"', page)) - {"laws"} == sections - {"laws"}
    assert "<h1>mine</h1>" in page
    assert page.count("<NA>") + page.count("&lt;NA&gt;") + page.count("nan %") == 0


def test_published_results_are_in_no_mean_and_no_statement(tmp_path: Path) -> None:
    write_grid(tmp_path / "runs", rungs=(1,), sizes=(500,))
    alone, beside = (tmp_path / name for name in ("alone", "beside"))
    write_report(tmp_path / "runs", alone, num_bootstrap=0)
    page = write_report(
        [tmp_path / "runs", "published:vit_compute"], beside, published=["models"], num_bootstrap=0
    ).read_text()
    for name in ("runs.csv", "summary.csv"):
        assert (alone / name).read_bytes() == (beside / name).read_bytes(), name
    groups = {point["group"] for point in page_data(page)["points"] if "group" in point}
    assert {"imagenet1k", "jft300m · finetune384"} <= groups
    with (beside / "published.csv").open(newline="") as file:
        assert {row["is_published"] for row in csv.DictReader(file)} == {"True"}
    assert ">resnet leads" not in page and page.count("https://arxiv.org/abs/") > 100


def test_families_keep_their_style_whoever_else_is_there() -> None:
    alone, together = family_styles(["resnet"]), family_styles(["zebra", "resnet", "vit", "coatnet", "timm"])
    assert alone["resnet"] == together["resnet"]
    assert list(together) == ["vit", "coatnet", "resnet", "timm", "zebra"]
    assert len({style.marker for style in together.values()}) == 5
    crowd = family_styles(["vit", "ViT", *"abcdefgh", "h", "g", "f"])
    assert list(crowd)[:4] == ["vit", "f", "g", "h"], "those that occur most often have the colours left"
    assert {crowd[name].light for name in "abcde"} == {"#6b717a"}

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
from vitlight.analysis.runs import COLUMNS
from vitlight.analysis.summary import SUMMARY_COLUMNS
from vitlight.errors import InputError

HOSTILE = '</script><img src=x onerror="window.hacked=1">\'&amp;\u2028'


def page_data(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_every_file_is_there_and_its_figures_are_images(tmp_path: Path) -> None:
    page = write_report([write_grid(tmp_path / "runs", rungs=(1, 2), sizes=(500, 2000))], tmp_path / "out" / "deep")
    assert page == tmp_path / "out" / "deep" / "report.html"
    pngs = {f"accuracy_vs_{axis}.png" for axis in ("forward_flops", "params", "train_flops", "images")}
    assert {path.name for path in page.parent.iterdir()} == {"report.html", "runs.csv", "summary.csv", *pngs}
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
    assert tuple(run) == tuple(COLUMNS)
    assert (run["train_flops"], run["top1"], run["reason"], run["params"]) == (str(flops), repr(0.1 + 0.2), "", "50000")
    with (page.parent / "summary.csv").open(newline="") as file:
        (cell,) = csv.DictReader(file)
    assert tuple(cell) == SUMMARY_COLUMNS
    assert (cell["train_flops"], cell["n"], cell["top1_std"], cell["seeds"]) == (str(flops), "1", "", "0")


def test_page_holds_every_cell_with_its_numbers(tmp_path: Path) -> None:
    write_grid(tmp_path / "runs")
    page = write_report(tmp_path / "runs", tmp_path / "out").read_text()
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
        }
    assert page.count("FLOP = half a MAC") >= 4


def test_shared_compute_is_counted_once(tmp_path: Path) -> None:
    for seed, own in ((0, 3 * 10**15), (1, 10**15)):
        write_run(tmp_path / "runs", result("vit_nano1", 500, seed, train_flops=3 * 10**15, own_train_flops=own))
    page = write_report(tmp_path / "runs", tmp_path / "out").read_text()
    total, shared = format_si(4 * 10**15, "FLOP"), format_si(2 * 10**15, "FLOP")
    assert f"<dd>{total}<small>FLOP = half a MAC, all runs done; {shared} that runs share is counted once" in page


def test_page_loads_nothing(tmp_path: Path) -> None:
    page = write_report(write_grid(tmp_path / "runs", rungs=(1,)), tmp_path / "out").read_text()
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(r"@import|url\(", page)
    beside = {"runs.csv", "summary.csv", *(chart.file for chart in CHARTS)}
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"data:,", *beside}


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
    page = write_report(tmp_path / "runs", tmp_path / "out").read_text()
    assert "<img" not in page
    assert page.count("</script>") == 2, "the data and the program, closed once each"
    assert page_data(page)["points"][0]["arch"] == HOSTILE


def test_runs_that_failed_or_diverged_are_listed_apart_and_in_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", result("vit_nano1", 500, 0))
    write_run(tmp_path / "runs", result("vit_nano1", 500, 1, status="diverged", reason="loss is NaN", top1=None))
    write_run(tmp_path / "runs", result("vit_nano1", 500, 2, status="failed", reason="out of memory"))
    page = write_report(tmp_path / "runs", tmp_path / "out").read_text()
    assert [point["n"] for point in page_data(page)["points"]] == [1]
    apart = page[page.index("<h2>Not counted</h2>") : page.index("<h2>Runs</h2>")]
    assert apart.count("<tr>") == 3
    assert "loss is NaN" in apart and "out of memory" in apart
    assert "1 diverged, 1 failed" in page


def test_a_report_without_a_finished_run_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", result("vit_nano1", 500, 0, status="failed", reason="boom"))
    page = write_report(tmp_path / "runs", tmp_path / "out")
    assert "No run has finished yet" in page.read_text()
    assert (page.parent / "accuracy_vs_params.png").stat().st_size > 1000


def test_no_run_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="no run in"):
        write_report(tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_families_keep_their_style_whoever_else_is_there() -> None:
    alone, together = family_styles(["resnet"]), family_styles(["zebra", "resnet", "vit", "coatnet", "timm"])
    assert alone["resnet"] == together["resnet"]
    assert list(together) == ["vit", "coatnet", "resnet", "timm", "zebra"]
    assert len({style.marker for style in together.values()}) == 5

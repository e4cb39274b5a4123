"""`vitlight table` shows what a table holds, and writes it so that nothing is lost."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.analysis.fake_runs import result, write_grid, write_run
from vitlight.analysis.published import PUBLISHED
from vitlight.analysis.tables import load_table
from vitlight.cli import main


def test_without_a_source_it_lists_the_published_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["source"] for row in rows] == [f"published:{name}" for name in PUBLISHED]
    assert [row["rows"] for row in rows] == [489, 732, 46, 108, 378]


def test_json_has_every_column_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs", result("vit_nano1", 500, 3, train_flops=10**30 + 1, top1=0.1 + 0.2, device=None))
    assert main(["table", str(tmp_path / "runs"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["train_flops"], row["top1"], row["device"], row["seed"]) == (10**30 + 1, 0.1 + 0.2, None, 3)
    assert list(row) == list(load_table(tmp_path / "runs").columns)


def test_rows_are_chosen_sorted_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_grid(tmp_path / "runs", rungs=(1, 2), sizes=(500, 2000), seeds=(0, 1))
    command = ["table", str(runs), "--where", "family=vit,coatnet", "--where", "num_train_samples>500", "--sort=-top1"]
    assert main([*command, "--csv", str(tmp_path / "chosen.csv"), "--columns", "arch,top1"]) == 0
    printed = capsys.readouterr().out
    written = load_table(tmp_path / "chosen.csv")
    assert len(written) == 8 and set(written["family"]) == {"vit", "coatnet"}
    assert written["top1"].is_monotonic_decreasing
    lines = [line.split("│")[1:3] for line in printed.splitlines() if line.startswith("│")]
    assert [line[0].strip() for line in lines] == list(written["arch"])
    assert [line[1].strip() for line in lines] == [f"{100 * value:.2f} %" for value in written["top1"]]
    assert "8 rows" in printed and f"table: {tmp_path / 'chosen.csv'}" in printed


def test_what_is_the_same_in_all_rows_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_grid(tmp_path / "runs", rungs=(1,), sizes=(500,), seeds=(0,))
    assert main(["table", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    header = printed.splitlines()[1]
    assert "arch" in header and "params" in header and "num_train_samples" not in header
    assert "the same in all: image_size 32, num_train_samples 500, " in printed
    assert "status done" in printed and "3 × 2 × forward MACs" in printed


def test_the_front_is_drawn_among_comparable_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = ((1, 0.5), (2, 0.4), (3, 0.6))
    for number, (macs, top1) in enumerate(costs):
        run = result("vit_nano1", 500, number, forward_macs=macs, top1=top1, run_id=f"a{number}")
        write_run(tmp_path / "runs", run)
        write_run(tmp_path / "runs", run | {"top1": top1 / 2, "image_size": 64, "run_id": f"b{number}"})
    assert main(["table", str(tmp_path / "runs"), "--front", "forward_macs", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["run_id"] for row in rows] == ["a0", "a2", "b0", "b2"]
    chosen = ["--where", "kind=paper", "--where", "image_size>300", "--where", "family=coatnet"]
    assert main(["table", "published:models", *chosen, "--front", "params", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    by_data = pd.DataFrame(rows).groupby("comparable")["variant"].apply(list)
    assert by_data["imagenet1k"] == ["CoAtNet-0", "CoAtNet-1", "CoAtNet-2", "CoAtNet-3"]
    assert by_data["jft3b"] == ["CoAtNet-6", "CoAtNet-7"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "arch=vit"], "--where is about the rows of a source, and none is named"),
        (["published:vit_data", "--sort", "top"], "--sort: the table has no column 'top'; did you mean top5, top1"),
        (["published:vit_data", "--columns", "arch,tpo1"], "--columns: the table has no column 'tpo1'; did you mean"),
        (["published:vit_data", "--front", "source"], "--front: source holds no numbers"),
        (["published:vit_data", "--front", "lr"], "--front: no row has both top1 and lr"),
        (["published:vit_data", "--where", "metric=x"], "--where=metric=x leaves no run"),
    ],
)
def test_what_it_cannot_do_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"vitlight: error: {message}") and printed.count("\n") == 1

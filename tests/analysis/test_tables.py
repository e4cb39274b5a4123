"""Anything that holds results becomes rows of one table: nothing lost, every unit converted once."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.analysis.fake_runs import result, write_grid, write_run
from vitlight.analysis.columns import COLUMNS, TABLE_COLUMNS
from vitlight.analysis.csv_values import parse_cell
from vitlight.analysis.runs import load_runs
from vitlight.analysis.summary import counted_runs, summarise
from vitlight.analysis.tables import load_table, resolve_source
from vitlight.errors import InputError

PUBLISHED_HEADER = (
    "family,variant,resolution,params_M,flops_G,flops_convention,imagenet_top1,pretrain_data,source,notes\n"
)


def write_csv(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def every_kind_of_run(root: Path) -> Path:
    """Done, diverged, failed and running, with numbers past int64 and past a double's whole numbers."""
    write_grid(root, rungs=(1, 2), sizes=(500,))
    flops = 6 * 190_000_000_000_001 * 12_800_000_001
    write_run(root, result("vit_nano1", 500, 7, train_flops=flops, params=2**53 + 1, lr=0.1 + 0.2))
    noted = [{"step": 7, "reason": 'loss, "NaN"', "lr_factor": 0.5}]
    nulls = dict.fromkeys(("params", "top1_count", "train_flops", "top1", "val_top1", "device"))
    write_run(
        root, result("vit_nano1", 500, 8, status="diverged", reason="loss is NaN\nat 7", rollbacks=noted, **nulls)
    )
    broken = write_run(root, result("vit_nano1", 500, 9))
    (broken / "result.json").write_text("{")
    running = write_run(root, result("resnet_nano1", 500, 9))
    (running / "result.json").unlink()
    row = {"data/samples_seen": 64, "compute/forward_macs": 10, "val/top1": 0.25}
    (running / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return root


def test_a_table_written_as_csv_is_the_same_table(tmp_path: Path) -> None:
    table = load_table(every_kind_of_run(tmp_path / "runs"))
    assert list(table.columns) == list(TABLE_COLUMNS)
    assert sorted(table["status"].unique()) == ["diverged", "done", "failed", "running"]
    table.to_csv(tmp_path / "table.csv", index=False)
    pd.testing.assert_frame_equal(load_table(tmp_path / "table.csv"), table)


def test_runs_csv_says_what_its_run_directories_say(tmp_path: Path) -> None:
    folder = every_kind_of_run(tmp_path / "runs")
    load_runs(folder).to_csv(tmp_path / "runs.csv")  # with an index, which is no column
    again, table = load_table(tmp_path / "runs.csv"), load_table(folder)
    pd.testing.assert_frame_equal(again.drop(columns="source"), table.drop(columns="source"))
    assert set(again["source"]) == {str(tmp_path / "runs.csv")}
    assert type(again["train_flops"].dropna().iloc[0]) is int
    pd.testing.assert_frame_equal(table[list(COLUMNS)], load_runs(folder))


def test_a_summary_becomes_the_runs_behind_it(tmp_path: Path) -> None:
    runs = load_runs(write_grid(tmp_path / "runs", rungs=(1,), sizes=(500, 2000), seeds=(0, 1, 5)))
    summarise(runs).to_csv(tmp_path / "summary.csv", index=False)
    table = load_table(tmp_path / "summary.csv")
    told = ["arch", "num_train_samples", "seed", "top1", "train_flops", "lr"]
    pd.testing.assert_frame_equal(
        table[told].sort_values(told[:3], ignore_index=True), runs[told].sort_values(told[:3], ignore_index=True)
    )
    assert len(counted_runs(table)) == 18


def test_a_run_in_two_sources_is_one_row_and_said(tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "runs", rungs=(1,), sizes=(500,))
    load_runs(folder).to_csv(tmp_path / "runs.csv", index=False)
    with pytest.warns(UserWarning, match="6 of 12 rows stand in two sources alike and are counted once"):
        table = load_table([folder, tmp_path / "runs.csv"])
    assert list(table["source"]) == list(table["run_dir"])


def test_sources_of_every_kind_in_one_table(tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "runs", rungs=(1,), sizes=(500,), seeds=(0,))
    own = write_csv(tmp_path / "own.csv", "model,params,top1,optimizer,depth\nmine,5M,81.6,sgd,12\nyours,6M,80,,\n")
    table = load_table([folder, own, "published:vit_data"])
    assert list(table.columns) == [*TABLE_COLUMNS, "optimizer", "depth"]
    assert table["is_published"].value_counts().to_dict() == {True: 46, False: 5}
    mine = table[table["variant"] == "mine"].iloc[0]
    assert (mine["arch"], mine["family"], mine["params"], mine["top1"]) == ("mine", "mine", 5_000_000, 0.816)
    assert (mine["optimizer"], mine["depth"], mine["status"], mine["source"]) == ("sgd", 12, "done", str(own))
    assert str(table["depth"].dtype) == "Int64"
    assert len(counted_runs(table)) == 5, "results of others are in no mean"


@pytest.mark.parametrize(
    ("flops", "convention", "macs"),
    [
        ("4.2", "MACs", 4_200_000_000),
        ("35.1", "2xMACs", 17_550_000_000),
        ("35.1", "2 x MACs", 17_550_000_000),
        ("35.1", "FLOPs", 17_550_000_000),
        ("5160", "about 2xMACs (read off a figure)", 2_580_000_000_000),
        ("", "", None),
    ],
)
def test_flops_become_multiply_adds_by_their_convention(
    tmp_path: Path, flops: str, convention: str, macs: int | None
) -> None:
    path = write_csv(tmp_path / "a.csv", PUBLISHED_HEADER + f"ViT,x,384,86.57,{flops},{convention},77.91,1K,cited,\n")
    row = load_table(path).iloc[0]
    assert (None if pd.isna(row["forward_macs"]) else row["forward_macs"]) == macs
    assert (row["params"], row["top1"], row["source"]) == (86_570_000, 0.7791, "cited")
    assert pd.isna(row["notes"])


@pytest.mark.parametrize(("convention", "said"), [("", "without a flops_convention"), ("GPU", "convention 'GPU'")])
def test_an_unknown_convention_leaves_no_number_and_says_why(tmp_path: Path, convention: str, said: str) -> None:
    path = write_csv(tmp_path / "a.csv", PUBLISHED_HEADER + f"ViT,x,384,86,55.5,{convention},77.9,1K,cited,seen\n")
    row = load_table(path).iloc[0]
    assert pd.isna(row["forward_macs"])
    assert row["notes"].startswith("seen; forward_macs unknown: 55500000000 FLOPs") and said in row["notes"]


def test_a_sweep_over_jft_has_our_sizes_and_its_compute(tmp_path: Path) -> None:
    header = "model,jft_images,steps,images_seen,metric,top1,label_status\n"
    rows = "L/16,30M,20000,81920000,finetune384,75.4,confirmed\ns/28,1B,20000,81920000,10shot,0.9,inferred\n"
    table = load_table(write_csv(tmp_path / "a.csv", header + rows))
    large, small = table.iloc[0], table.iloc[1]
    assert (large["arch"], large["family"], large["params"], large["forward_macs"]) == (
        "vit_l16",
        "vit",
        304_326_632,
        61_554_712_576,
    )
    assert large["train_flops"] == 6 * 61_554_712_576 * 81_920_000
    assert (large["num_train_samples"], large["samples_seen"], large["top1"]) == (30_000_000, 81_920_000, 0.754)
    assert (large["global_batch_size"], large["steps"], large["image_size"]) == (4096, 20000, 224)
    assert (large["metric"], large["pretrain_data"], large["comparable"]) == ("finetune384", "jft30m", "jft")
    assert (small["arch"], small["num_train_samples"], small["top1"]) == ("vit_xs28", 10**9, 0.009)
    assert list(table["label_status"]) == ["confirmed", "inferred"]


@pytest.mark.parametrize(
    ("text", "top1"),
    [
        ("top1\n81.6\n0\n", [0.816, 0.0]),
        ("top1\n0.816\n1\n", [0.816, 1.0]),
        ("top1\n81.6%\n0.5%\n", [0.816, 0.005]),
        ("top1_pct\n0.9\n0.1\n", [0.009, 0.001]),
        ("top1\n81.6\nNaN\n", [0.816, None]),
    ],
)
def test_percent_is_told_by_the_column(tmp_path: Path, text: str, top1: list[float | None]) -> None:
    lines = text.splitlines()
    text = "\n".join([f"arch,{lines[0]}", *(f"a{i},{line}" for i, line in enumerate(lines[1:]))])
    table = load_table(write_csv(tmp_path / "a.csv", text))
    assert [None if pd.isna(value) else value for value in table["top1"]] == top1


def test_decimal_text_becomes_the_nearest_double() -> None:
    assert all(parse_cell("top1", f"{k / 100:.2f}", percent=True) == k / 10_000 for k in range(10_001))
    assert all(parse_cell("params", f"{k / 1000:.3f}", power=6) == 1000 * k for k in range(0, 2_000_000, 997))
    for number in (0, 7, 1_281_167, 2**53 + 1, 2**63 - 1):
        for text in (str(number), f"{number:,}", f"{number:_}", f"{number:,}".replace(",", " ")):
            assert parse_cell("params", text) == number
    assert parse_cell("train_flops", str(10**40 + 1)) == 10**40 + 1
    assert parse_cell("lr", repr(0.1 + 0.2)) == 0.1 + 0.2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: it has no header line"),
        ("arch,top1\n", "has a header and no rows"),
        ("arch,top1,top1\na,1,1\n", "two columns named 'top1'"),
        ("arch,top1\na,1,1\n", "line 2: 3 cells where the header has 2 columns"),
        ('arch,top1\n"a,1\n', "line 2: unexpected end of data"),
        ("arch,top1\na,0.8\nb,81.6\n", "column 'top1': it holds '0.8' and '81.6'"),
        ("arch,top1\na,high\n", "column 'top1': 'high' is no number"),
        ("arch;top1\na;81,6\n", "'81,6' is no number; write a decimal point"),
        ("arch,top1\na,181\n", "line 2: top1: top1 is 1.81, outside"),
        ("arch,top1,params\na,0.8,1.5\n", "line 2: params: '1.5' is no whole number"),
        ("arch,top1,params\na,0.8,-1\n", "line 2: params: params is -1, which is not a count"),
        ("arch,top1,status\na,0.8,doen\n", "line 2: status: 'doen' is no status; did you mean done?"),
        ("Step,a - val/top1,a - val/top1__MIN\n1,0.5,0.5\n", "is the export of a W&B chart, which has no runs"),
        ("size,width\n1,2\n", "has none of the known forms. Its columns: size, width. Known: a summary of vitlight"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = write_csv(tmp_path / "a.csv", text)
    with pytest.raises(InputError) as caught:
        load_table(path)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("separator", "encoding"), [(",", "utf-8-sig"), (";", "utf-8"), ("\t", "utf-8")])
def test_byte_order_mark_and_separators(tmp_path: Path, separator: str, encoding: str) -> None:
    text = f"arch{separator}params{separator}top1\r\nvit_ti16{separator}5 717 416{separator}0.72\r\n\r\n"
    row = load_table(write_csv(tmp_path / "a.csv", text, encoding)).iloc[0]
    assert (row["arch"], row["params"], row["top1"], row["family"]) == ("vit_ti16", 5_717_416, 0.72, "vit")


def test_text_in_another_encoding_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not UTF-8"):
        load_table(write_csv(tmp_path / "a.csv", "arch,top1\né,0.5\n", "latin-1"))


def test_rows_that_agree_in_every_cell_count_once(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", "arch,top1\na,0.5\na,0.5\nb,0.5\n")
    with pytest.warns(UserWarning, match="1 of 3 rows repeat another in every column"):
        assert list(load_table(path)["arch"]) == ["a", "b"]
    seeded = write_csv(tmp_path / "b.csv", "arch,top1,seed\na,0.5,0\na,0.5,1\n")
    assert len(counted_runs(load_table(seeded))) == 2


def test_training_flops_follow_where_they_are_not_told(tmp_path: Path) -> None:
    text = "arch,top1,forward_macs,samples_seen\na,0.5,1000,10\nb,0.5,,10\n"
    table = load_table(write_csv(tmp_path / "a.csv", text))
    assert table["train_flops"].iloc[0] == 60_000
    assert pd.isna(table["train_flops"].iloc[1])


def test_images_seen_follow_from_epochs_and_back(tmp_path: Path) -> None:
    told = write_csv(tmp_path / "a.csv", "arch,top1,num_train_samples,epochs\na,0.5,1281167,90\nb,0.5,1281167,0.5\n")
    table = load_table(told)
    assert table["samples_seen"].iloc[0] == 90 * 1_281_167
    assert pd.isna(table["samples_seen"].iloc[1]), "half an image is not seen"
    back = write_csv(tmp_path / "b.csv", "arch,top1,num_train_samples,samples_seen\na,0.5,500,1250\n")
    assert load_table(back)["epochs"].iloc[0] == 2.5


def test_models_and_families_are_named_as_here(tmp_path: Path) -> None:
    text = "arch,family,top1\nViT-B/16,ViT,0.8\nvit_b16,vit,0.8\nCoAtNet-0,,0.8\nbit_r50x1,,0.7\nmine-2,,0.6\n"
    table = load_table(write_csv(tmp_path / "a.csv", text))
    assert list(table["arch"]) == ["vit_b16", "vit_b16", "coatnet_0", "bit_r50x1", "mine-2"]
    assert list(table["family"]) == ["vit", "vit", "coatnet", "resnet", "mine"]
    assert table["variant"].fillna("").to_list() == ["ViT-B/16", "", "CoAtNet-0", "", ""]


def test_timm_results_load(tmp_path: Path) -> None:
    text = "model,img_size,top1,top5,param_count\nconvnext_tiny.fb_in1k,288,82.694,96.15,28.59\nresnet10t,224,0.9,2,5\n"
    row = load_table(write_csv(tmp_path / "a.csv", text)).iloc[0]
    assert (row["arch"], row["family"]) == ("timm:convnext_tiny.fb_in1k", "convnext")
    assert (row["params"], row["image_size"], row["top1"]) == (28_590_000, 288, 0.82694)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.csv", "nothing at 'absent.csv'"),
        ("published:model", "no published table 'model'; did you mean models?"),
        ("published:imagenet", "no published table 'imagenet'"),
    ],
)
def test_a_source_that_is_not_there_is_named(source: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_source(source)
    assert str(caught.value).startswith(message)


def test_a_folder_of_tables_names_them(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", "arch,top1\na,0.5\n")
    with pytest.raises(InputError, match=r"no run in '.*'.*; it holds a\.csv: name the files"):
        load_table(tmp_path)


def test_a_file_of_a_run_is_no_table(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, result("vit_nano1", 500, 0))
    with pytest.raises(InputError, match=r"result\.json is no table: name a CSV file, or the folder of a run"):
        load_table(run_dir / "result.json")

"""Run directories become rows: exact, complete, and with nothing dropped."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.analysis.fake_runs import result, write_run
from vitlight.analysis import load_runs
from vitlight.analysis.runs import COLUMNS
from vitlight.errors import InputError

FIRST_COLUMNS = [
    *("arch", "family", "params", "forward_macs", "image_size", "num_train_samples", "samples_seen"),
    *("unique_samples_seen", "epochs", "train_flops", "top1", "eval_split", "top5", "loss", "val_top1", "val_loss"),
    *("seed", "status", "wall_seconds", "device_seconds", "images_per_second", "global_batch_size", "lr"),
    *("weight_decay", "name", "run_id", "run_dir", "commit", "data_digest", "num_ranks", "device", "reason"),
]


def test_columns_and_values_are_those_of_result_json(tmp_path: Path) -> None:
    run = result("vit_nano2", 2000, 3)
    run_dir = write_run(tmp_path, run)
    table = load_runs(tmp_path)
    assert list(table.columns) == list(COLUMNS)
    assert list(COLUMNS)[: len(FIRST_COLUMNS)] == FIRST_COLUMNS
    row = table.iloc[0]
    for column in COLUMNS:
        if column == "run_dir":
            assert row[column] == str(run_dir)
        elif column == "versions":
            assert json.loads(row[column]) == run["versions"]
        elif run[column] in (None, []):
            assert pd.isna(row[column])
        else:
            assert row[column] == run[column], column


def test_counts_are_exact_beyond_float_and_int64(tmp_path: Path) -> None:
    flops = 6 * 190_000_000_000_001 * 12_800_000_001
    assert flops > 2**63
    write_run(tmp_path, result("vit_nano1", 500, 0, train_flops=flops, params=2**53 + 1, samples_seen=2**53 + 3))
    table = load_runs(tmp_path)
    assert table["train_flops"].iloc[0] == flops
    assert type(table["train_flops"].iloc[0]) is int
    assert table["params"].iloc[0] == 2**53 + 1
    assert table["samples_seen"].iloc[0] == 2**53 + 3
    assert str(flops) in table.to_csv() and str(2**53 + 1) in table.to_csv()


def test_integer_columns_stay_integers_beside_missing_values(tmp_path: Path) -> None:
    write_run(tmp_path, result("vit_nano1", 500, 0))
    nulls = dict.fromkeys(("params", "top1_count", "train_flops", "top1", "val_top1"))
    write_run(tmp_path, result("vit_nano1", 500, 1, status="diverged", reason="loss is NaN", **nulls))
    table = load_runs(tmp_path)
    assert {column: str(table[column].dtype) for column in ("params", "seed", "top1_count")} == {
        "params": "Int64",
        "seed": "Int64",
        "top1_count": "Int64",
    }
    assert pd.isna(table["params"].iloc[1]) and pd.isna(table["train_flops"].iloc[1])
    assert list(table["status"]) == ["done", "diverged"]


def test_any_depth_any_number_of_paths_each_run_once(tmp_path: Path) -> None:
    a = write_run(tmp_path / "x" / "deep" / "er", result("vit_nano1", 500, 0))
    b = write_run(tmp_path / "y", result("vit_nano2", 500, 0))
    assert list(load_runs(tmp_path)["run_id"]) == ["vit_nano1-500-0", "vit_nano2-500-0"]
    assert list(load_runs(a)["run_id"]) == ["vit_nano1-500-0"]
    assert list(load_runs([b, tmp_path, str(a)])["run_dir"]) == [str(b), str(a)]


def test_no_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run directory at '.*absent'"):
        load_runs(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no run in '.*empty'"):
        load_runs([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"schema": 1, "arch"', "Expecting"),
        ("", "Expecting value"),
        ("[1]", "not a JSON object"),
        (json.dumps(result("vit_nano1", 500, 0, schema=2)), "schema 2 is not 1"),
        (json.dumps(result("vit_nano1", 500, 0, status="finished")), "status 'finished'"),
        (json.dumps(result("vit_nano1", 500, 0, top1=71.5)), r"top1 is 71.5, outside \[0, 1\]"),
        (json.dumps(result("vit_nano1", 500, 0, params="5M")), "params is '5M', which is no count"),
        (json.dumps(result("vit_nano1", 500, 0, samples_seen=-1)), "samples_seen is -1, which is not a count"),
        (json.dumps(result("vit_nano1", 500, 0, top1=None)), "the run is done, yet top1 is null"),
        (json.dumps(result("vit_nano1", 500, 0, top1=float("nan"))), "the run is done, yet top1 is null"),
    ],
)
def test_an_unusable_result_is_named_and_listed_as_failed(tmp_path: Path, text: str, complaint: str) -> None:
    write_run(tmp_path, result("vit_nano2", 500, 0))
    broken = write_run(tmp_path, result("vit_nano1", 500, 0))
    (broken / "result.json").write_text(text)
    table = load_runs(tmp_path).set_index("run_id")
    row = table.loc["vit_nano1-500-0"]
    assert row["status"] == "failed"
    assert str(broken / "result.json") in row["reason"]
    assert pd.Series([row["reason"]]).str.contains(complaint).all()
    assert pd.isna(row["top1"])
    assert (row["arch"], row["seed"], row["name"]) == ("vit_nano1", 0, "quickstart")
    assert table.loc["vit_nano2-500-0", "status"] == "done"


def test_a_run_under_way_has_the_axes_of_its_last_whole_rows(tmp_path: Path) -> None:
    run_dir = tmp_path / "quickstart" / "abc123"
    run_dir.mkdir(parents=True)
    (run_dir / "experiment.yaml").write_text(
        "seed_everything: 7\nmodel: {arch: resnet_nano3, optimizer: {lr: 0.002}}\n"
        "data: {num_train_samples: 8000, image_size: 28, global_batch_size: 64}\n"
    )
    rows = [
        {
            "event": "train",
            "data/samples_seen": step,
            "compute/train_flops": 10**19 + step,
            "perf/images_per_second": 5.5,
        }
        for step in range(0, 640_000, 64)
    ]
    rows.insert(-1, {"event": "val", "data/samples_seen": 600_000, "val/top1": 0.5, "val/loss": 1.25})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run_dir / "metrics.jsonl").write_text(text + '{"event": "train", "data/samples_seen": 9')
    assert len(text) > 3 * 2**18, "longer than the tail that is read"
    row = load_runs(tmp_path).iloc[0]
    assert (row["status"], row["name"], row["run_id"]) == ("running", "quickstart", "abc123")
    assert (row["arch"], row["seed"], row["lr"], row["num_train_samples"]) == ("resnet_nano3", 7, 0.002, 8000)
    assert row["samples_seen"] == 640_000 - 64
    assert row["train_flops"] == 10**19 + 640_000 - 64
    assert (row["val_top1"], row["val_loss"]) == (0.5, 1.25)
    assert pd.isna(row["top1"])


def test_a_run_that_has_logged_nothing_is_listed(tmp_path: Path) -> None:
    run_dir = tmp_path / "s" / "new"
    run_dir.mkdir(parents=True)
    (run_dir / "experiment.yaml").write_text("{not yaml")
    row = load_runs(tmp_path).iloc[0]
    assert (row["status"], row["run_id"]) == ("running", "new")
    assert pd.isna(row["arch"]) and pd.isna(row["samples_seen"])


def test_what_became_of_a_diverged_run_is_kept(tmp_path: Path) -> None:
    noted = [{"step": 7, "reason": "loss", "resumed_from_step": 6, "lr_factor": 0.5}]
    kept = "checkpoints/step-000000006.ckpt"
    diverged = {"status": "diverged", "top1": None, "last_good_checkpoint": kept, "rollbacks": noted}
    write_run(tmp_path, result("vit_nano1", 500, 0, **diverged))
    write_run(tmp_path, result("vit_nano1", 500, 1))
    table = load_runs(tmp_path)
    assert table["last_good_checkpoint"].fillna("none").to_list() == [kept, "none"]
    assert json.loads(table["rollbacks"].iloc[0]) == noted
    assert pd.isna(table["rollbacks"].iloc[1])


def test_what_a_run_shares_with_others_is_not_its_own(tmp_path: Path) -> None:
    alone = {"own_train_flops": None, "own_device_seconds": None}  # as earlier results, which have no such words
    write_run(tmp_path, result("vit_nano1", 500, 0, train_flops=600, device_seconds=6.0, **alone))
    write_run(tmp_path, result("vit_nano1", 500, 1, train_flops=600, own_train_flops=200, own_device_seconds=2.5))
    table = load_runs(tmp_path)
    assert table["own_train_flops"].tolist() == [600, 200]
    assert table["own_device_seconds"].tolist() == [6.0, 2.5]

"""W&B's exports become the rows that the runs' own records would be."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from vitlight.analysis.summary import counted_runs
from vitlight.analysis.tables import load_table
from vitlight.errors import InputError

PAGE_EXPORT = (
    '"Name","State","Notes","User","Tags","Created","Runtime","Sweep","ID","data.image_size","data.num_train_samples",'
    '"model.arch","model.optimizer.lr","seed_everything","compute/forward_macs","compute/train_flops",'
    '"data/samples_seen","model/params","perf/mfu","status","top1","val/top1"\n'
    '"a","finished","","me","","2026-11-22T10:00:00.000Z","61.5","s","id1","32","0.1","vit_nano1","0.001","3",'
    '"2489600","14937600000000000000000","1000000000000000","60264","0.4","done","0.81","0.82"\n'
    '"b","crashed","","me","","2026-11-22T10:00:00.000Z","9","s","id2","32","8,000","vit_nano1","0.001","4",'
    '"2489600","","","60264","0.4","","","0.5"\n'
    '"c","finished","","me","","2026-11-22T10:00:00.000Z","9","s","id3","32","500","vit_nano1","0.001","5",'
    '"2489600","","","60264","0.4","diverged","",""\n'
    '"d","finished","","me","","2026-11-22T10:00:00.000Z","9","s","id4","32","500","vit_nano1","0.001","5",'
    '"2489600","","","60264","0.4","","","0.75"\n'
)


def test_the_runs_table_of_the_page(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text(PAGE_EXPORT)
    table = load_table(path)
    assert list(table["run_id"]) == ["id1", "id2", "id3", "id4"]
    assert list(table["status"]) == ["done", "failed", "diverged", "done"]
    first = table.iloc[0]
    assert (first["arch"], first["family"], first["params"], first["seed"]) == ("vit_nano1", "vit", 60264, 3)
    assert (first["samples_seen"], first["train_flops"]) == (10**15, 14_937_600_000 * 10**12)
    assert (first["top1"], first["val_top1"], first["lr"], first["wall_seconds"]) == (0.81, 0.82, 0.001, 61.5)
    assert pd.isna(first["num_train_samples"]), "a fraction of the images is no count of them"
    assert table["data.num_train_samples"].iloc[0] == 0.1
    assert table["num_train_samples"].iloc[1] == 8000
    assert table["perf/mfu"].tolist() == [0.4] * 4
    assert (table["top1"].iloc[3], table["eval_split"].iloc[3]) == (0.75, "val")
    assert list(counted_runs(table)["run_id"]) == ["id1", "id4"]


def test_the_table_of_the_api(tmp_path: Path) -> None:
    config = {
        "model": {"arch": "vit_nano2", "optimizer": {"lr": 1e-05}},
        "data": {"num_train_samples": 500},
        "_wandb": {},
    }
    summary = {"val/top1": 0.5, "top1": 0.625, "val/loss": float("nan"), "_step": 3, "list": [1, float("inf")]}
    pd.DataFrame({"summary": [summary, {}], "config": [config, config], "name": ["one", "two"]}).to_csv(
        tmp_path / "project.csv"
    )
    table = load_table(tmp_path / "project.csv")
    assert list(table["name"]) == ["one", "two"]
    row = table.iloc[0]
    assert (row["arch"], row["lr"], row["num_train_samples"], row["top1"]) == ("vit_nano2", 1e-05, 500, 0.625)
    assert pd.isna(row["val_loss"]) and row["list"] == "[1, null]"
    assert row["status"] == "done" and pd.isna(table["status"].iloc[1])
    assert not [column for column in table.columns if column.startswith("_")]


def test_a_cell_that_is_no_dict_is_named(tmp_path: Path) -> None:
    path = tmp_path / "project.csv"
    path.write_text("name,summary,config\none,{},Config()\n")
    with pytest.raises(InputError, match=r"project\.csv, line 2: config is no Python dict: 'Config\(\)'"):
        load_table(path)


OFFLINE_RUN = """
import wandb
settings = {"model": {"arch": "vit_nano1"}, "data": {"num_train_samples": 500}, "seed_everything": 3}
run = wandb.init(project="p", id="id1", name="a run", mode="offline", config=settings)
run.log({"val/top1": 0.25, "data/samples_seen": 4000, "compute/train_flops": 6 * 2489600 * 4000})
run.summary.update({"top1": 0.5, "status": "done"})
run.finish()
"""


def test_folders_that_met_no_server(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    subprocess.run([sys.executable, "-c", OFFLINE_RUN], cwd=tmp_path, env=environment, check=True, capture_output=True)
    (tmp_path / "wandb" / "run-torn.wandb").write_bytes(b"torn")
    beside = tmp_path / "runs" / "n" / "r"  # a run of vitlight, whose own W&B folder says nothing more
    (beside / "wandb").mkdir(parents=True)
    (beside / "experiment.yaml").write_text("model: {arch: vit_nano2}")
    (beside / "wandb" / "run-own.wandb").write_bytes(b"torn")
    report = tmp_path / "report"  # shown on W&B, and no run
    (report / "wandb").mkdir(parents=True)
    (report / "report.html").write_text("")
    (report / "wandb" / "run-report.wandb").write_bytes(b"torn")
    table = load_table(tmp_path).set_index("run_id")
    assert table["status"].to_dict() == {"r": "running", "id1": "done", "torn": "running"}
    row = table.loc["id1"]
    assert (row["name"], row["arch"], row["seed"], row["num_train_samples"]) == ("a run", "vit_nano1", 3, 500)
    assert (row["top1"], row["val_top1"]) == (0.5, 0.25)
    assert row["train_flops"] == 6 * 2489600 * 4000
    assert "offline-run" in row["source"]

"""A report on W&B, offline: what the run holds is read back by W&B's own reader."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.analysis.fake_runs import write_grid
from vitlight.cli import main


def report_offline(tmp_path: Path, *arguments: str) -> list[Path]:
    write_grid(tmp_path / "runs", rungs=(1,), sizes=(500, 2000), seeds=(0,))
    out = tmp_path / "out"
    assert main(["report", str(tmp_path / "runs"), "--out", str(out), "--bootstrap", "0", *arguments]) == 0
    return sorted(out.glob("wandb/offline-run-*/run-*.wandb"))


def test_the_run_holds_tables_plots_figures_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    (path,) = report_offline(tmp_path, "--wandb", "scaling")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert said[1] == f"W&B: offline; show it with `wandb sync {path.parent}`"
    media = path.parent / "files" / "media"
    (page,) = media.glob("html/*.html")
    assert page.read_text() == (tmp_path / "out" / "report.html").read_text()
    assert len(list(media.glob("images/figures/*.png"))) == 6
    tables = {file.name.split("_")[0]: json.loads(file.read_text()) for file in media.glob("table/tables/*.json")}
    assert sorted(tables) == ["runs", "summary"]
    rows = tables["summary"]
    top1, flops = (rows["columns"].index(name) for name in ("top1_mean", "train_flops"))
    assert len(rows["data"]) == 6 and all(0 < row[top1] < 1 and row[flops] > 1e10 for row in rows["data"])
    leet = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", "--summary", str(path)]
    read = json.loads(subprocess.run(leet, capture_output=True, text=True, timeout=120, check=True).stdout)
    assert '"num_runs": 6' in json.dumps(read)


def test_wandb_that_is_turned_off_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert report_offline(tmp_path, "--wandb") == []
    assert capsys.readouterr().out.splitlines()[1] == "W&B: not shown, as WANDB_MODE=disabled asks"

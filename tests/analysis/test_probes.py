"""What `vitlight probe` left beside a run is part of its row."""

import json
from pathlib import Path

import pytest

from tests.analysis.fake_runs import result, write_run
from vitlight.analysis import load_runs
from vitlight.analysis.probes import is_probe_fraction, probe_fractions
from vitlight.analysis.report_tables import run_table
from vitlight.analysis.table_view import show
from vitlight.analysis.tables import load_table

COLUMNS = ["few_shot/10_shot", "few_shot/10_shot_std", "probe_split"]


def probed(root: Path, seed: int, **probes: dict[str, float]) -> Path:
    """A run that measured 0.25 while it trained, with a file of these scores of ten shots by name."""
    run = result("vit_nano1", 500, seed) | {
        "few_shot/10_shot": 0.25,
        "few_shot/10_shot_std": 0.01,
        "probe_split": "val",
    }
    run_dir = write_run(root, run)
    if probes:
        records = {
            name.removeprefix("own"): {
                "split": "test",
                "scores": [{"column": column, "top1": top1, "top1_std": None} for column, top1 in scores.items()],
            }
            for name, scores in probes.items()
        }
        (run_dir / "probe.json").write_text(json.dumps({"schema": 1, "probes": records}))
    return run_dir


def test_what_was_measured_while_training_gives_way_to_what_was_later(tmp_path):
    probed(tmp_path, 0)
    probed(tmp_path, 1, own={"few_shot/10_shot": 0.5, "knn/20": 0.625}, pets={"few_shot/10_shot": 0.75})
    table = load_runs(tmp_path).set_index("seed")
    assert table.loc[0, COLUMNS].tolist() == [0.25, 0.01, "val"]
    assert table.loc[1, ["few_shot/10_shot", "probe_split"]].tolist() == [0.5, "test"]
    assert table.loc[1, ["knn/20", "pets/few_shot/10_shot", "pets/probe_split"]].tolist() == [0.625, 0.75, "test"]
    assert table.loc[0, ["knn/20", "pets/few_shot/10_shot"]].isna().all()
    assert probe_fractions(table.columns) == ["few_shot/10_shot", "knn/20", "pets/few_shot/10_shot"]


def test_tables_and_reports_show_them_in_percent(tmp_path, capsys):
    probed(tmp_path, 1, own={"few_shot/10_shot": 0.5125}, pets={"knn/20": 0.75})
    table = load_table(tmp_path)
    show(table, None, as_json=False)
    printed = capsys.readouterr().out
    assert "few_shot/10_shot" in printed
    assert "51.25 %" in printed
    assert "pets/knn/20" in printed
    page = run_table(table, tmp_path)
    assert ">few_shot/10_shot<small>frozen features</small>" in page
    assert 'data-value="0.5125" title="0.5125">51.25 %<' in page


def test_a_file_that_can_not_be_read_costs_nothing_but_a_warning(tmp_path):
    run_dir = probed(tmp_path, 0)
    (run_dir / "probe.json").write_text('{"schema": 2}')
    with pytest.warns(UserWarning, match=r"probe\.json can't be used: .*schema 2 is not 1"):
        table = load_runs(tmp_path)
    assert table["few_shot/10_shot"].tolist() == [0.25]


@pytest.mark.parametrize(
    ("column", "is_one"),
    [("few_shot/5_shot_tuned", True), ("a/b/knn/10", True), ("linear/ridge", True), ("knn", False), ("top1", False)],
)
def test_columns_are_known_by_their_names(column, is_one):
    assert is_probe_fraction(column) == is_one

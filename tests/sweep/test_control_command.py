"""What `vitlight sweep stop`, `retry` and `add` print, and what they may be given, on fake runs."""

import argparse
import json
import platform

import pytest
import yaml

from tests.sweep import fake_fit
from tests.sweep.conftest import table_cells
from vitlight.errors import InputError
from vitlight.sweep import load_sweep, plan_sweep
from vitlight.sweep.claims import Claims
from vitlight.sweep.known_plan import load_place
from vitlight.sweep.leases import LeaseWatch
from vitlight.sweep.status import claim_path
from vitlight.training.locks import Lock


def test_retry_tells_what_will_be_run_again(sweep_cli, write_sweep, capsys, tmp_path):
    sweep_file = write_sweep({"model.arch": ["ok_1", "broken_2", "nan_3"]})
    assert sweep_cli("run", sweep_file) == 1
    capsys.readouterr()
    again = f"by the runners at work, or by `vitlight sweep run {sweep_file} --root {tmp_path / 'runs'}`\n"
    assert sweep_cli("retry", sweep_file) == 0
    assert capsys.readouterr().out == f"to be run again: cell 1; {again}"
    assert sweep_cli("retry", sweep_file) == 0
    assert capsys.readouterr().out == "no cell has failed; name those that diverged: `retry FILE diverged`\n"
    with pytest.raises(InputError, match=r"^cell 0 \(model.arch=ok_1\) is done; retry is for cells that failed or "):
        sweep_cli("retry", sweep_file, "0-2")
    with pytest.raises(
        InputError, match=r"^cell 1 \(model.arch=broken_2\) is waiting; .*, and --from-scratch for those"
    ):
        sweep_cli("retry", sweep_file, "arch=broken_2")
    assert sweep_cli("retry", sweep_file, "1", "diverged", "--from-scratch") == 0
    assert capsys.readouterr().out == f"to be run again, from the first step: cells 1-2; {again}"
    (tmp_path / "runs" / "repaired").touch()
    assert sweep_cli("run", sweep_file) == 0
    assert "demo: 2 of 3 cells done, 1 diverged" in capsys.readouterr().out


def test_stop_tells_what_it_asked_for(sweep_cli, write_sweep, capsys, tmp_path):
    sweep_file = write_sweep({"model.arch": ["ok_1", "ok_2"]})
    with pytest.raises(InputError, match=r"demo isn't there: nothing of this sweep was ever run$"):
        sweep_cli("stop", sweep_file)
    planned = plan_sweep(load_sweep(sweep_file), fake_fit.resolve, tmp_path / "runs")
    planned[1].run.run_dir.mkdir(parents=True)
    (planned[1].run.run_dir / "metrics.jsonl").write_text('{"data/samples_seen": 40}\n')
    goes_on = f"`vitlight sweep run {sweep_file} --root {tmp_path / 'runs'}` goes on from here\n"
    assert sweep_cli("stop", sweep_file) == 0
    assert capsys.readouterr().out == f"runners start no more cells; none was running\n{goes_on}"
    with Claims() as claims:
        claim_path(planned[1]).parent.mkdir()
        claim = claims.take(claim_path(planned[1]))
        assert sweep_cli("stop", sweep_file, "1", "--detach") == 0
        assert capsys.readouterr().out == f"runners leave cell 1\nasked to save and end: cell 1\n{goes_on}"
        assert sweep_cli("status", sweep_file, "--columns", "cell,state") == 0
        assert table_cells(capsys.readouterr().out)[1] == ["1", "stopping"]
        claim.release()
    (planned[1].run.run_dir / "result.json").write_text('{"status": "done"}')
    with pytest.raises(InputError, match=r"^cell 1 has ended already$"):
        sweep_cli("stop", sweep_file, "1")


def test_stop_tells_of_cells_that_went_down_with_their_host(sweep_cli, write_sweep, capsys, tmp_path, monkeypatch):
    sweep_file = write_sweep({"model.arch": ["ok_1"]})
    planned = plan_sweep(load_sweep(sweep_file), fake_fit.resolve, tmp_path / "runs")
    run_dir, path = planned[0].run.run_dir, claim_path(planned[0])
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text('{"data/samples_seen": 40}\n')
    path.parent.mkdir()
    path.touch()
    with monkeypatch.context() as there:
        there.setattr(platform, "node", lambda: "gpu7")
        LeaseWatch(0.01).take(path, Lock(-1, path, "elsewhere"))
    with pytest.raises(
        InputError, match=r"is running; .* `sweep stop` ends it first, or frees it where its host is dead$"
    ):
        sweep_cli("retry", sweep_file, "0")
    assert sweep_cli("stop", sweep_file) == 0
    lost = f"lost     with gpu7 at about 40 of 100 images model.arch=ok_1  {planned[0].run.run_id}"
    assert capsys.readouterr().out.splitlines()[2] == lost
    assert sweep_cli("retry", sweep_file, "0", "--from-scratch") == 0


def test_a_directory_stands_for_its_sweep_whose_file_may_have_no_name(sweep_cli, write_sweep, capsys, tmp_path):
    content = yaml.safe_load(write_sweep({"model.arch": ["ok_1"]}).read_text())
    del content["name"]
    nameless, directory = tmp_path / "mine.yaml", tmp_path / "runs" / "mine"
    nameless.write_text(yaml.safe_dump(content))
    assert sweep_cli("run", nameless) == 0
    capsys.readouterr()
    assert sweep_cli("add", directory, "--model.arch=ok_2") == 0
    assert capsys.readouterr().out.endswith(f"`vitlight sweep run {directory}` runs them\n")
    assert sweep_cli("plan", directory, "--json") == 0
    assert [row["arch"] for row in json.loads(capsys.readouterr().out)] == ["ok_1", "ok_2"]
    assert sweep_cli("run", directory) == 0
    printed = capsys.readouterr().out
    assert (printed.count("started"), printed.count("mine: 2 of 2 cells done")) == (1, 1)
    for place in (nameless, directory):
        assert sweep_cli("status", place, "--json") == 0
        assert [row["state"] for row in json.loads(capsys.readouterr().out)] == ["done", "done"]
    assert sweep_cli("stop", directory) == 0
    assert capsys.readouterr().out.endswith(f"`vitlight sweep run {directory}` goes on from here\n")
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()] == ["mine"]


@pytest.mark.parametrize("words", [("run",), ("plan",), ("add", "--model.arch=ok_2")])
def test_a_directory_that_was_renamed_is_not_taken_for_its_sweep(sweep_cli, write_sweep, tmp_path, words):
    assert sweep_cli("run", write_sweep({"model.arch": ["ok_1"]})) == 0
    moved = (tmp_path / "runs" / "demo").rename(tmp_path / "runs" / "moved")
    with pytest.raises(InputError, match=r"runs/moved holds a sweep whose runs lie in .*runs/demo; name that, or the "):
        sweep_cli(words[0], moved, *words[1:])
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()] == ["moved"]


@pytest.mark.parametrize(("below", "name"), [(".", "."), ("claims", "..")])
def test_a_directory_is_found_from_inside(write_sweep, tmp_path, monkeypatch, below, name):
    directory = tmp_path / "runs" / "mine"
    (directory / "claims").mkdir(parents=True)
    write_sweep({"model.arch": ["ok_1"]}).rename(directory / "sweep.yaml")
    monkeypatch.chdir(directory / below)
    sweep, root, found = load_place(argparse.Namespace(file=name, root=None))
    assert (sweep.name, root, found) == ("demo", tmp_path / "runs", directory)


def test_cells_are_added_to_a_finished_sweep_and_run(sweep_cli, write_sweep, capsys, tmp_path):
    sweep_file = write_sweep({"model.arch": ["ok_1", "ok_2"], "seed_everything": [0, 1]})
    assert sweep_cli("run", sweep_file) == 0
    capsys.readouterr()
    assert sweep_cli("add", sweep_file, "--model.arch=ok_3", "--model.arch=ok_2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[2:4] for line in lines[:2]] == [
        ["4", "model.arch=ok_3 seed_everything=0"],
        ["5", "model.arch=ok_3 seed_everything=1"],
    ]
    run = f"`vitlight sweep run {sweep_file} --root {tmp_path / 'runs'}`"
    assert lines[2] == f"cells 4-5, {2 * 60 * 3 * 100:.3e} train FLOPs; {run} runs them"
    assert sweep_cli("run", sweep_file) == 0
    assert "demo: 6 of 6 cells done" in capsys.readouterr().out
    assert sweep_cli("status", tmp_path / "runs" / "demo", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in rows] == ["done"] * 6
    with pytest.raises(InputError, match=r"^the sweep has these 2 cells already$"):
        sweep_cli("add", sweep_file, "--model.arch=ok_3")
    with pytest.raises(InputError, match=r"cell 6 \(model.arch=vit_3 .*\): model.arch=vit_3 is unknown$"):
        sweep_cli("add", sweep_file, "--model.arch=vit_3", "--seed_everything=0")
    with pytest.raises(InputError, match=r"^name the settings of the cells to add"):
        sweep_cli("add", sweep_file)
    assert sweep_cli("status", sweep_file, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 6


def test_more_values_in_the_file_are_run_and_nothing_else(sweep_cli, write_sweep, capsys):
    assert sweep_cli("run", write_sweep({"model.arch": ["ok_1", "ok_2"]})) == 0
    sweep_file = write_sweep({"model.arch": ["ok_1", "ok_2", "ok_3"]})
    capsys.readouterr()
    assert sweep_cli("run", sweep_file) == 0
    printed = capsys.readouterr().out
    assert printed.count("started") == 1
    assert "demo: 3 of 3 cells done" in printed

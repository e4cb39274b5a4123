"""Real cells on one loader: the runs that they would be by themselves; and in which order such cells start."""

import json
import os
import re
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from tests.sweep.planned_cells import planned_cell
from vitlight.cli import main
from vitlight.errors import InputError
from vitlight.sweep.shared_loader import SharingExecutor, check_loader_arguments, same_data_together
from vitlight.training.record import RunDirectory

DEADLINE_SECONDS = 120.0
# Two cells on the same batches, which do different things with them.
CELLS = """
      - {model: {arch: vit_nano1}}
      - {model: {arch: resnet_nano1}, data: {mixing: {mixup_alpha: 0.2}}, trainer: {accumulate_grad_batches: 2}}
"""


def run_sweep(fit_args, folder, *options):
    """Both cells side by side; the folders of their runs."""
    folder.mkdir()
    words = "".join(f"  - {json.dumps(word)}\n" for word in ["vitlight", *fit_args, f"--run.root={folder}", "${args}"])
    values = f"parameters:\n  config:\n    values:{CELLS}"
    (folder / "sweep.yaml").write_text(f"name: tiny\nmethod: grid\ncommand:\n{words}{values}")
    assert main(["sweep", "run", str(folder / "sweep.yaml"), "--jobs=2", *options]) == 0
    return {path.parent.name: path.parent for path in folder.glob("tiny/*/result.json")}


def record(path):
    """Rows and result without times, and the weights."""
    run = RunDirectory(path)
    rows = [
        {name: value for name, value in row.items() if not name.startswith(("time/", "perf/"))} for row in run.rows()
    ]
    (last,) = run.checkpoints.glob("step-*12.ckpt")
    names = ("run_id", "status", "top1_count", "loss", "val_loss", "samples_seen", "plan_digest")
    return rows, {name: run.read_result()[name] for name in names}, torch.load(last, weights_only=True)["state_dict"]


def test_cells_on_one_loader_are_bit_for_bit_the_runs_they_would_be_alone(fit_args, tmp_path, capsys):
    options = ("--share-loader", "--share-loader-workers=1", "--share-loader-gib=0.1")
    shared = run_sweep(fit_args, tmp_path / "shared", *options)
    assert "one loader for all cells: 1 decoding processes, at most 0.1 GiB of batches\n" in capsys.readouterr().err
    alone = run_sweep(fit_args, tmp_path / "alone")
    assert len(shared) == 2
    assert shared.keys() == alone.keys()
    for run_id, path in shared.items():
        rows, result, weights = record(path)
        its_rows, its_result, its_weights = record(alone[run_id])
        assert (result["status"], result["samples_seen"]) == ("done", 192)
        assert (its_rows, its_result) == (rows, result)
        assert its_weights.keys() == weights.keys()
        assert all(torch.equal(its_weights[key], weights[key]) for key in weights)
    logs = tmp_path / "shared" / "tiny" / "logs"
    assert not any("loads its images itself" in log.read_text() for log in logs.iterdir())
    said = (logs / "shared-loader.log").read_text()
    assert re.findall(r"decoded (\d+) images, handed out (\d+)", said) == [("192", "384")]


def test_one_cell_at_a_time_has_nobody_to_share_with(tmp_path):
    class OneAtATime:
        num_slots = 1

    _, warning = SharingExecutor(OneAtATime(), tmp_path / "log").lines()
    assert warning == "warning: one cell at a time has nobody to share the loader with; give --jobs"


def test_cells_go_on_by_themselves_when_their_loader_is_gone(tmp_path, capsys):
    class Started:
        num_slots = 1
        args: tuple[str, ...] = ()

        def start(self, args, slot, log_path, claim_fd):
            self.args = tuple(args)

    started = Started()
    with SharingExecutor(started, tmp_path / "log", num_workers=1, gib=0.1) as sharing:
        sharing.start(["fit"], 0, tmp_path / "cell", 0)
        assert re.fullmatch(r"--data\.shared_loader=vitlight-loader-[0-9a-f]{16}/0", started.args[1])
        os.kill(sharing.pid, 9)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(started.args) > 1:
            sharing.start(["fit"], 0, tmp_path / "cell", 0)
            assert time.monotonic() < deadline
        sharing.start(["fit"], 0, tmp_path / "cell", 0)
    assert capsys.readouterr().err.count("the shared loader has ended") == 1


def test_cells_on_the_same_batches_start_one_after_another():
    cells = [planned_cell(0, macs=1), planned_cell(1, macs=9), planned_cell(2, macs=5), planned_cell(3, macs=7)]
    for cell in (cells[0], cells[2]):
        cell.run.settings.data.train = "a"
    for cell in (cells[1], cells[3]):
        cell.run.settings.data.train = "b"
    cells[3].run.settings.data.num_workers = 3  # decides nothing
    order = same_data_together(cells)
    assert [cell.cell.index for cell in sorted(cells, key=order)] == [0, 2, 3, 1]
    cells.append(planned_cell(4, macs=6, seed=1))
    assert [cell.cell.index for cell in sorted(cells, key=same_data_together(cells))] == [0, 2, 4, 3, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share_loader_workers": 3}, "--share-loader-workers=3 needs --share-loader"),
        ({"share_loader_gib": 0.5}, "--share-loader-gib=0.5 needs --share-loader"),
    ],
)
def test_what_a_loader_is_like_is_said_where_there_is_one(given, message):
    args = Namespace(**{"share_loader": False, "share_loader_workers": None, "share_loader_gib": None, **given})
    with pytest.raises(InputError, match=message):
        check_loader_arguments(args)
    args.share_loader = True
    check_loader_arguments(args)


@pytest.mark.parametrize("gib", [0.0, -1.0, 1e9])
def test_memory_that_is_none_or_more_than_there_is_is_refused(gib):
    with pytest.raises(InputError, match=r"--share-loader-gib=.* is not above 0 and at most"):
        SharingExecutor(None, Path("log"), gib=gib)


def test_jobs_of_a_cluster_share_no_loader(capsys, tmp_path):
    (tmp_path / "sweep.yaml").write_text("{}")
    assert main(["sweep", "run", str(tmp_path / "sweep.yaml"), "--slurm", "--share-loader"]) == 2
    assert "--share-loader is for cells on this machine" in capsys.readouterr().err

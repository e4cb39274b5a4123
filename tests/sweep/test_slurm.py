"""Job scripts, shapes and Slurm's answers without a Slurm; tests/cluster has a real one."""

import argparse
import stat
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.sweep import fake_fit
from vitlight.cli import main
from vitlight.errors import InputError
from vitlight.sweep import load_sweep, plan_sweep
from vitlight.sweep.job_records import JobRecord, read_job, remove_job, write_job
from vitlight.sweep.slurm_command import add_slurm_arguments, check_slurm_arguments
from vitlight.sweep.slurm_queue import JobState, SlurmQueue
from vitlight.sweep.slurm_shape import Shape, cell_arguments, cell_shape
from vitlight.sweep.slurm_submit import MAX_ARRAY, SlurmOptions, SlurmSubmitter


@pytest.fixture
def plan(write_sweep, tmp_path):
    """Planned cells of fake runs, with what their settings say of the trainer."""

    def plan(parameters, num_nodes=1, devices="auto"):
        settings = SimpleNamespace(trainer=SimpleNamespace(num_nodes=num_nodes, devices=devices))

        def resolve(args):
            return replace(fake_fit.resolve(args), settings=settings)

        return plan_sweep(load_sweep(write_sweep(parameters)), resolve, tmp_path / "runs")

    return plan


@pytest.mark.parametrize(
    ("num_nodes", "devices", "flags", "shape"),
    [
        (1, "auto", (None, None), Shape(1, 1)),
        (2, 4, (None, None), Shape(2, 4)),
        (2, "4", (None, None), Shape(2, 4)),
        (2, "0,3,5", (None, None), Shape(2, 3)),
        (1, [0, 1], (None, None), Shape(1, 2)),
        (1, -1, (None, 8), Shape(1, 8)),
        (1, "auto", (3, 8), Shape(3, 8)),
        (2, 2, (3, 8), Shape(3, 8)),  # from a config file: a default that the flags replace
    ],
)
def test_a_cells_shape_follows_from_its_settings_and_the_flags(plan, num_nodes, devices, flags, shape):
    planned = plan({"model.arch": ["ok_1"]}, num_nodes, devices)[0]
    assert cell_shape(planned, *flags) == shape
    args = cell_arguments(planned, shape)
    assert args[-2:] == (f"--trainer.num_nodes={shape.num_nodes}", f"--trainer.devices={shape.ranks_per_node}")


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("trainer.num_nodes", (3, None), r"cell 0 \(.*\) has trainer.num_nodes=2, and --nodes-per-cell is 3; leave"),
        ("trainer.devices", (None, 3), r"cell 0 \(.*\) has trainer.devices=2, and --gpus-per-node is 3; a process"),
    ],
)
def test_what_a_cell_itself_says_must_agree_with_the_flags(plan, name, flags, message):
    planned = plan({name: [2]}, num_nodes=2, devices=2)[0]
    with pytest.raises(InputError, match=message):
        cell_shape(planned, *flags)


def test_a_mapping_of_settings_counts_as_what_a_cell_says(plan):
    mapping = {"model": {"arch": "ok_1"}, "trainer": {"num_nodes": 2}}
    planned = plan({"model.arch": ["ok_1"]}, num_nodes=2)[0]
    planned = replace(planned, args=(*planned.args, f"--config={mapping}"))
    assert cell_shape(planned, None, 4) == Shape(2, 4)
    with pytest.raises(InputError, match=r"has trainer.num_nodes=2, and --nodes-per-cell is 1"):
        cell_shape(planned, 1, None)


def test_jobs_that_ask_for_no_gpu_are_told_from_those_that_do():
    assert not SlurmOptions(sbatch=("qos=high",)).asks_for_gpus
    assert SlurmOptions(gpus_per_node=1).asks_for_gpus
    assert SlurmOptions(sbatch=("gres=gpu:a100:4",)).asks_for_gpus


def test_cells_of_a_shape_make_an_array_of_a_size_that_slurm_takes(plan, tmp_path):
    cells = plan({"model.arch": ["ok_1"], "seed_everything": list(range(MAX_ARRAY + 2))})
    submitter = SlurmSubmitter(cells, SlurmOptions(max_parallel=7), SlurmQueue())
    submitter.shapes[cells[3].run.run_id] = Shape(2, 1)
    assert [len(array) for array in submitter.arrays(cells)] == [1000, 1, 1]
    assert submitter.arrays(cells)[2] == [cells[3]]
    script = submitter.script(cells[:3])
    assert "#SBATCH --array=0-2%3\n" in script
    assert "#SBATCH --requeue\n" in script
    assert "--time" not in script
    assert submitter.script(cells[3:4]).count("#SBATCH --nodes=2\n") == 1
    assert "--array" not in submitter.script(cells[3:4])


def test_options_reach_the_script(plan):
    cells = plan({"model.arch": ["ok_1"]})
    options = SlurmOptions(
        partition="gpu",
        account="lab",
        time="2-00:00:00",
        gpus_per_node=4,
        cpus_per_task=8,
        mem="64G",
        setup=("module load cuda", "source env.sh"),
        sbatch=("qos=high", "--exclusive", "signal=TERM@60"),
    )
    lines = SlurmSubmitter(cells, options, SlurmQueue()).script(cells).splitlines()
    for name in ("partition=gpu", "account=lab", "time=2-00:00:00", "gpus-per-node=4", "cpus-per-task=8", "mem=64G"):
        assert f"#SBATCH --{name}" in lines
    for name in ("qos=high", "exclusive", "signal=TERM@60", "ntasks-per-node=4", "requeue"):
        assert f"#SBATCH --{name}" in lines
    begin = lines.index("trap : TERM USR1")
    assert lines[begin + 1 : begin + 3] == ["module load cuda", "source env.sh"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_parallel": 0}, "--max-parallel is 0; it must be 1 or more"),
        ({"nodes_per_cell": -1}, "--nodes-per-cell is -1"),
        ({"sbatch": ("=high",)}, "--sbatch '=high' is no option of sbatch; write NAME=VALUE"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        SlurmOptions(**options)


def test_options_for_a_cluster_need_one():
    parser = argparse.ArgumentParser()
    add_slurm_arguments(parser)
    parser.add_argument("--jobs", type=int)
    with pytest.raises(InputError, match="--partition needs --slurm"):
        check_slurm_arguments(parser.parse_args(["--partition=gpu"]))
    with pytest.raises(InputError, match="--dry-run needs --slurm"):
        check_slurm_arguments(parser.parse_args(["--dry-run"]))
    with pytest.raises(InputError, match="--jobs is for cells on this machine"):
        check_slurm_arguments(parser.parse_args(["--slurm", "--jobs=2"]))
    check_slurm_arguments(parser.parse_args(["--slurm", "--partition=gpu"]))


def test_without_submitit_the_extra_is_named(plan, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(InputError, match=r"^--slurm needs submitit; pip install 'vitlight\[slurm\]'$"):
        SlurmSubmitter(plan({"model.arch": ["ok_1"]}), SlurmOptions(), SlurmQueue())


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """What programs of these names print."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()

    def answer(name, text, code=0):
        program = tmp_path / "bin" / name
        program.with_suffix(".txt").write_text(f"{text}\n" if text else "")
        lines = f'while IFS= read -r line; do echo "$line"; done < {program}.txt'
        program.write_text(f"#!/bin/sh\n{lines}\nexit {code}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    answer("scontrol", "SlurmctldHost = x\nClusterName             = mill\n")
    return answer


def record(queue, **values):
    return JobRecord(**{"token": "t1", "task": 1, "cluster": "mill", "user": queue.user, "submitted": "", **values})


def test_slurms_answer_is_read(answers):
    answers(
        "squeue", "12_0|RUNNING|None|node[1-2]|t1\n12_1|PENDING|Priority||t1\n13|OUT_OF_MEMORY|OutOfMemory|node1|t2"
    )
    queue = SlurmQueue(refresh_seconds=0.0)
    running = queue.state(record(queue, job="12_0"))
    assert running == JobState("12_0", "RUNNING", "node[1-2]")
    assert (running.is_running, running.has_ended) == (True, False)
    assert queue.state(record(queue)) == JobState("12_1", "PENDING", "Priority")  # found by its token
    ended = queue.state(record(queue, token="t2", task=None))
    assert (ended.job, ended.has_ended, ended.asks_for_another_try) == ("13", True, False)
    gone = queue.state(record(queue, job="11_1"))
    assert (gone.state, gone.has_ended, gone.asks_for_another_try) == ("GONE", True, True)


def test_without_an_answer_nothing_is_known(answers, tmp_path):
    queue = SlurmQueue(refresh_seconds=0.0)
    answers("squeue", "slurm_load_jobs error", code=1)
    assert queue.state(record(queue, job="12")) is None
    assert queue.trouble.startswith("squeue: ")
    (tmp_path / "bin" / "squeue").unlink()
    queue.forget()
    assert queue.state(record(queue, job="12")) is None
    assert queue.trouble == "there is no squeue on this host"
    answers("squeue", "")
    queue.forget()
    assert queue.state(record(queue, job="12")).state == "GONE"
    assert queue.trouble is None
    assert queue.state(record(queue, job="12", cluster="other")) is None
    assert queue.state(record(queue, job="12", user="somebody")) is None


def test_records_are_written_read_and_removed(tmp_path):
    path = tmp_path / "x.job"
    assert read_job(path) is None
    written = JobRecord("t", 3, "mill", "me", "2026-01-01T00:00:00+00:00", "5_3", 1)
    write_job(path, written)
    assert read_job(path) == written
    remove_job(path)
    remove_job(path)
    assert read_job(path) is None


def test_the_command_says_in_a_line_that_an_option_needs_slurm(write_sweep, capsys):
    assert main(["sweep", "run", str(write_sweep({"model.arch": ["ok_1"]})), "--detach"]) == 2
    assert capsys.readouterr().err.strip() == "vitlight: error: --detach needs --slurm"

"""Every cell is checked before any runs."""

import dataclasses
from pathlib import Path

import pytest

from tests.sweep import fake_fit
from vitlight.errors import InputError
from vitlight.sweep import load_sweep, plan_sweep
from vitlight.sweep.plan import sweep_directory
from vitlight.training import resolve as training_resolve
from vitlight.training.experiment import ExperimentCLI
from vitlight.training.resolve import Resolver, resolve_run


def test_cells_get_the_sweeps_name_and_root(write_sweep):
    planned = plan_sweep(load_sweep(write_sweep({"model.arch": ["ok_1", "ok_2"]})), fake_fit.resolve, Path("my runs"))
    assert [item.run.arch for item in planned] == ["ok_1", "ok_2"]
    expected = ("fit", "--config=base.yaml", "--model.arch=ok_1", "--run.name=demo", "--run.root=my runs")
    assert planned[0].args == expected
    assert planned[0].run.run_dir == Path("my runs/demo") / planned[0].run.run_id
    assert sweep_directory(planned) == Path("my runs/demo")


def test_name_and_root_that_the_cells_set_are_kept(write_sweep):
    command = ["vitlight", "fit", "--run.name=mine", "--run.root=there", "${args}"]
    planned = plan_sweep(
        load_sweep(write_sweep({"seed_everything": [0]}, command=command)), fake_fit.resolve, Path("x")
    )
    assert planned[0].args == ("fit", "--run.name=mine", "--run.root=there", "--seed_everything=0")


def test_without_a_root_the_experiments_own_is_used(write_sweep):
    planned = plan_sweep(load_sweep(write_sweep({"seed_everything": [0]})), fake_fit.resolve)
    assert planned[0].args[-1] == "--run.name=demo"
    assert planned[0].run.run_dir.parent == Path("runs/demo")


def test_all_invalid_cells_are_counted_in_one_line(write_sweep):
    path = write_sweep({"model.arch": ["ok_1", "vit_a", "vit_b", "ok_2", "vit_c"], "seed_everything": [0]})
    with pytest.raises(InputError) as caught:
        plan_sweep(load_sweep(path), fake_fit.resolve)
    assert str(caught.value) == (
        f"{path}: 3 of 5 cells are invalid (1-2, 4); cell 1 (model.arch=vit_a): model.arch=vit_a is unknown"
    )


def test_cells_that_are_the_same_run_are_named(write_sweep):
    path = write_sweep({"model.arch": ["ok_1", "ok_2"], "trainer.devices": [1, 2]})
    with pytest.raises(InputError) as caught:
        plan_sweep(load_sweep(path), fake_fit.resolve)
    run_id = fake_fit.resolve(("fit", "--config=base.yaml", "--model.arch=ok_1", "--run.name=demo")).run_id
    assert str(caught.value) == (
        f"{path}: cells 0 (model.arch=ok_1 trainer.devices=1) and 1 (model.arch=ok_1 trainer.devices=2) are the same "
        f"run {run_id}: trainer.devices changes nothing there; keep one of its values"
    )


def test_cells_in_different_directories_are_refused(write_sweep):
    path = write_sweep({"run.name": ["a", "b"], "seed_everything": [0]})

    def resolve(args):
        run = fake_fit.resolve(args)
        return dataclasses.replace(run, run_id=run.run_dir.parent.name)

    with pytest.raises(InputError) as caught:
        plan_sweep(load_sweep(path), resolve)
    assert str(caught.value) == (
        f"{path}: cells 0 and 1 lie in runs/a and runs/b; a sweep has one directory: "
        "take run.name and run.root out of its parameters"
    )


def test_other_errors_of_resolve_are_not_hidden(write_sweep):
    def resolve(args):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        plan_sweep(load_sweep(write_sweep({"seed_everything": [0, 1]})), resolve)


def test_cells_of_one_trunk_count_their_shared_steps_once(write_sweep):
    axes = {"model.schedule.name": ["wsd"], "data.num_train_samples": [500, 100, 300], "model.arch": ["ok_1", "ok_2"]}
    planned = plan_sweep(load_sweep(write_sweep(axes)), fake_fit.resolve)
    own = {(item.run.arch, item.run.steps): item.own_train_flops // 600 for item in planned}
    # 10, 30 and 50 steps, of which 8, 24 and 40 lie on the trunk.
    assert own == {(f"ok_{n}", steps): n * left for n in (1, 2) for steps, left in ((10, 10), (30, 22), (50, 26))}
    alone = plan_sweep(load_sweep(write_sweep({"data.num_train_samples": [100, 500]})), fake_fit.resolve)
    assert [item.own_train_flops for item in alone] == [item.run.train_flops for item in alone]


def test_cells_that_differ_in_their_seed_alone_are_parsed_once_and_resolve_as_they_would_alone(fit_args):
    resolve = Resolver()
    for args in ([*fit_args, "--seed_everything=3"], [fit_args[0], "--seed_everything=5", *fit_args[1:]], fit_args):
        together, alone = resolve(args), resolve_run(args)
        assert together == alone
        assert together.settings == ExperimentCLI(args).settings == alone.settings
    assert len({resolve([*fit_args, f"--seed_everything={seed}"]).run_id for seed in range(4)}) == 4
    assert [resolve([*fit_args, "--seed_everything=3"]).seed, resolve(fit_args).seed] == [3, 0]
    with pytest.raises(InputError, match="seed_everything=4294967296 is not a number from 0 to"):
        resolve([*fit_args, f"--seed_everything={2**32}"])


def test_a_file_after_the_seed_has_the_last_word(fit_args, tmp_path):
    (tmp_path / "late.yaml").write_text("seed_everything: 9\n")
    resolve = Resolver()
    assert resolve([*fit_args, "--seed_everything=3", f"--config={tmp_path / 'late.yaml'}"]).seed == 9
    assert resolve([*fit_args, f"--config={tmp_path / 'late.yaml'}", "--seed_everything=3"]).seed == 3
    assert resolve([*fit_args, "--seed_everything=3", "--seed_everything=4"]).seed == 4


def test_networks_are_counted_for_a_plan_as_for_a_run(fit_args):
    for arch, options in (
        ("vit_nano1", "{depth: 2}"),
        ("coatnet_nano1", "{}"),
        ("resnet_nano1", "{}"),
        ("bit_r50x1", "{}"),
    ):
        args = [*fit_args, f"--model.arch={arch}", f"--model.model_options={options}"]
        cli = ExperimentCLI(args)
        assert Resolver()(args) == training_resolve.resolve(cli, cli.build_data())

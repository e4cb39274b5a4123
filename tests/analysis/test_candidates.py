"""Runs to propose: what is new among a sweep's cells and a family's ladder, and that their commands say what they mean."""

import shlex
from pathlib import Path

import pandas as pd

from tests.analysis.law_runs import MACS_PER_PARAM, SIZES, write_law
from vitlight.analysis.candidates import fit_command, known_sizes, ladder, sweep_cells
from vitlight.analysis.points import PointSet, law_sets
from vitlight.analysis.tables import load_table
from vitlight.training.experiment import ExperimentCLI
from vitlight.training.resolve import resolve_run


def members(root: Path) -> PointSet:
    (one,), _ = law_sets(load_table([root]))
    return one


def test_the_ladder_is_what_was_not_run(tmp_path: Path) -> None:
    one = members(write_law(tmp_path, archs=("vit_nano1", "vit_nano2")))
    sizes = {arch: (params, MACS_PER_PARAM * params) for arch, params in SIZES.items()}
    found = ladder(one, sizes, "params")
    done = {(arch, samples) for arch, samples in zip(one.runs["arch"], one.runs["samples_seen"], strict=True)}
    places = {(item.name.partition(",")[0], int(item.samples)) for item in found}
    assert not places & done
    # Two new archs at four durations, and every arch at two longer ones, of which the images are the most there were.
    assert len(found) == len(places) == 2 * 4 + 4 * 2
    assert max(samples for _, samples in places) == 4 * 1_280_000
    for item in found:
        assert item.train_flops == 6 * MACS_PER_PARAM * item.params * item.samples
        assert item.unique_samples <= 1_280_000


def test_archs_of_the_family_are_counted_as_the_runs_were(tmp_path: Path) -> None:
    one = members(write_law(tmp_path, archs=("vit_nano1", "vit_nano2")))
    asked = []

    def count_macs(arch: str, image_size: int, in_channels: int, num_classes: int) -> int:
        asked.append((arch, image_size, in_channels, num_classes))
        return 7

    sizes = known_sizes(one, count_macs)
    assert sizes["vit_nano1"] == (20_000, MACS_PER_PARAM * 20_000), "as the run says, not counted again"
    # 20 k to 80 k parameters were run, and 4 x beyond is 320 k: with 10 classes vit_nano3 is larger than that or not.
    assert all(call[1:] == (32, 3, 10) and call[0].startswith("vit_nano") for call in asked)
    assert all(sizes[arch][1] == 7 and 5_000 <= sizes[arch][0] <= 320_000 for arch, *_ in asked)


def test_cells_without_a_result_are_the_ones_whose_run_is_not_done() -> None:
    row = {"arch": "vit_nano1", "num_train_samples": 100, "horizon_samples": 300, "seed": 0, "params": 5, "forward_macs": 9,
           "train_flops": 16_200, "args": ["fit", "--config=a b.yaml"]}  # fmt: skip
    rows = [row | {"run_id": name} for name in ("a", "b", "c")]
    runs = pd.DataFrame({"run_id": ["a", "b"], "status": ["done", "failed"]})
    found = sweep_cells(rows, runs, "forward_macs")
    assert len(found) == 2
    assert (found[0].params, found[0].samples, found[0].unique_samples) == (9, 300, 100)
    assert found[0].command == "vitlight fit '--config=a b.yaml'"


def test_the_command_makes_the_run_that_it_says(fit_args: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "tiny" / "made"
    run_dir.mkdir(parents=True)
    cli = ExperimentCLI(fit_args)
    (run_dir / "experiment.yaml").write_text(cli.dump())
    runs = pd.DataFrame(
        {"run_dir": [str(run_dir)], "arch": ["vit_nano1"], "num_train_samples": [160], "samples_seen": [192]}
    )
    longer = resolve_run(shlex.split(fit_command(runs, "vit_nano2", 160, 320))[1:])
    assert (longer.arch, longer.horizon_samples) == ("vit_nano2", 320)
    same = resolve_run(fit_args)
    assert longer.num_train_samples == same.num_train_samples and longer.run_dir.parent == same.run_dir.parent
    fewer = resolve_run(shlex.split(fit_command(runs, "vit_nano1", 40, 192))[1:])
    assert (fewer.num_train_samples, fewer.horizon_samples) == (40, 192)

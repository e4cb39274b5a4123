"""What the report says in words follows from the numbers, and no further."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.analysis.fake_runs import result, write_grid, write_run
from vitlight.analysis import load_runs, summarise
from vitlight.analysis.findings import compare, pool_spread, state_caveats, state_findings

NUM_EVAL = 10_000


def write_cell(root: Path, arch: str, num_images: int, counts: list[int], **changes: Any) -> None:
    for seed, count in enumerate(counts):
        write_run(root, result(arch, num_images, seed, top1=count / NUM_EVAL, top1_count=count, **changes))


def test_interval_equals_scipys_t_test_where_two_cells_are_all(tmp_path: Path) -> None:
    counts = {"vit_nano1": [7000, 7040, 7100], "resnet_nano1": [7500, 7450, 7530]}
    for arch, values in counts.items():
        write_cell(tmp_path, arch, 500, values)
    cells = pool_spread(summarise(load_runs(tmp_path))).set_index("arch")
    found = compare(cells.loc["resnet_nano1"], cells.loc["vit_nano1"])
    a, b = (np.array(counts[arch]) / NUM_EVAL for arch in ("resnet_nano1", "vit_nano1"))
    expected = stats.ttest_ind(a, b).confidence_interval(0.95)
    assert found.gap == pytest.approx(a.mean() - b.mean())
    assert found.interval == pytest.approx((expected.low, expected.high))


def test_interval_equals_welch_between_data_sizes(tmp_path: Path) -> None:
    counts = {500: [6000, 6100, 6300], 2000: [7000, 7010, 7030, 7040]}
    for num_images, values in counts.items():
        write_cell(tmp_path, "vit_nano1", num_images, values)
    cells = pool_spread(summarise(load_runs(tmp_path))).set_index("num_train_samples", drop=False)
    found = compare(cells.loc[2000], cells.loc[500])
    a, b = (np.array(counts[num_images]) / NUM_EVAL for num_images in (2000, 500))
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("vit", "resnet", "verdict", "words"),
    [
        ([7000, 7020, 7010], [7500, 7510, 7520], "supported", "resnet leads at 500 images"),
        ([7000, 7400, 7200], [7100, 7500, 7300], "open", "resnet is ahead by mean at 500 images"),
        ([7400, 7401, 7402], [7460, 7461, 7462], "open", "resnet is ahead by mean at 500 images"),
        ([7000], [7500, 7510, 7520], "one seed", "resnet is ahead by mean at 500 images"),
    ],
)
def test_verdict_on_the_best_family(
    tmp_path: Path, vit: list[int], resnet: list[int], verdict: str, words: str
) -> None:
    write_cell(tmp_path, "vit_nano1", 500, vit)
    write_cell(tmp_path, "resnet_nano1", 500, resnet)
    (finding,) = state_findings(summarise(load_runs(tmp_path)))
    assert (finding.verdict, finding.title) == (verdict, words)


def test_a_gap_beyond_seeds_but_within_evaluation_noise_is_said_to_be(tmp_path: Path) -> None:
    write_cell(tmp_path, "vit_nano1", 500, [7400, 7401, 7402])
    write_cell(tmp_path, "resnet_nano1", 500, [7460, 7461, 7462])
    (finding,) = state_findings(summarise(load_runs(tmp_path)))
    assert "The seeds' spread doesn't explain that" in finding.text
    assert "but evaluation noise (1.2 points) can" in finding.text


def test_effects_of_more_images_and_larger_models_are_counted(tmp_path: Path) -> None:
    write_grid(tmp_path, rungs=(1, 2, 3), sizes=(500, 8000), seeds=(0, 1, 2))
    titles = {finding.title: finding for finding in state_findings(summarise(load_runs(tmp_path)))}
    more = titles["More images raised top-1 in 9 of 9 cases"]
    assert (more.verdict, more.label) == ("supported", "9 of 9 clear")
    assert any(title.startswith("Larger models raised top-1 in ") for title in titles)


def test_one_seed_everywhere_supports_nothing(tmp_path: Path) -> None:
    findings = state_findings(summarise(load_runs(write_grid(tmp_path, seeds=(0,)))))
    assert {finding.verdict for finding in findings} == {"one seed"}
    assert all("no spread is known" in finding.text for finding in findings)


def test_a_clean_sweep_has_no_caveat(tmp_path: Path) -> None:
    runs = load_runs(write_grid(tmp_path, rungs=(1,)))
    assert state_caveats(runs, summarise(runs)) == []


@pytest.mark.parametrize(
    ("changes", "caveat"),
    [
        ({"data_digest": "0ther"}, "on 2 data sets"),
        ({"eval_split": "val"}, "on 2 evaluation splits"),
        ({"image_size": 64}, "on 2 image sizes"),
        ({"commit": "f" * 40}, "from 2 commits (ffffffffffff, 0123456789ab)"),
        ({"train_flops": 1}, "train_flops is not 6 × forward_macs × samples_seen in odd"),
        ({"top1_count": 1}, "top1 is not top1_count / num_eval_samples in odd"),
        ({"seed": 0}, "2 runs share settings and seed"),
        ({"rollbacks": [{"step": 7, "lr_factor": 0.5}]}, "1 run went back to an earlier step after diverging"),
        ({"lr": 0.5}, "tables and lines show the best by mean val_top1"),
        ({"lr": 0.5, "val_top1": None}, "top1 itself, which flatters the winner"),
        ({"run_id": "vit_nano1-500-0"}, "1 run found in a second folder"),
    ],
)
def test_what_is_not_comparable_is_said(tmp_path: Path, changes: dict[str, Any], caveat: str) -> None:
    write_run(tmp_path, result("vit_nano1", 500, 0))
    write_run(tmp_path, result("vit_nano1", 500, 1) | {"run_id": "odd", "name": "other"} | changes)
    runs = load_runs(tmp_path)
    assert any(caveat in text for text in state_caveats(runs, summarise(runs))), state_caveats(runs, summarise(runs))


def test_runs_that_are_not_comparable_are_told_apart(tmp_path: Path) -> None:
    write_grid(tmp_path / "a", rungs=(1,), sizes=(500,))
    write_grid(tmp_path / "b", rungs=(1,), sizes=(500,), data_digest="0ther", name="other")
    titles = [finding.title for finding in state_findings(summarise(load_runs(tmp_path)))]
    assert sorted(title[:6] for title in titles) == ["Set 1:", "Set 2:"]

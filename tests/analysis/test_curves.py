"""Sample-efficiency lines: the evaluations that runs logged, averaged where all of them did."""

import json
from pathlib import Path

import pytest

from tests.analysis.fake_runs import result, write_evaluations, write_run
from vitlight.analysis import load_runs, summarise
from vitlight.analysis.curves import MAX_POINTS, Curve, published_curves, read_evaluations, run_curves
from vitlight.analysis.plot_tables import samples_to_reach
from vitlight.analysis.published import load_published


def curves_of(root: Path) -> list[Curve]:
    runs = load_runs(root)
    return run_curves(runs, summarise(runs))


def write_rows(run_dir: Path, rows: list[tuple[int, float]]) -> None:
    lines = [json.dumps({"event": "val", "data/samples_seen": seen, "val/top1": top1}) for seen, top1 in rows]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_a_line_is_the_mean_where_every_run_evaluated(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path, result("vit_nano1", 500, seed)) for seed in (0, 1))
    write_rows(first, [(0, 0.1), (1000, 0.2), (2000, 0.4), (4000, 0.5)])
    write_rows(second, [(1000, 0.4), (3000, 0.5), (4000, 0.6)])
    (curve,) = curves_of(tmp_path)
    assert (curve.n, curve.samples_seen, curve.arch, curve.images) == (2, (1000, 4000), "vit_nano1", 500)
    assert curve.top1 == pytest.approx((0.3, 0.55))


def test_the_last_row_at_a_place_counts_and_torn_ones_do_not(tmp_path: Path) -> None:
    run_dir = write_evaluations(write_run(tmp_path, result("vit_nano1", 500, 0)), num=2)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(
            '{"data/samples_seen": 4000, "val/top1": 0.75}\n{"data/samples_seen": 9, "val/top1": null}\n{"val/top1": 0.'
        )
    found = read_evaluations(run_dir)
    assert (sorted(found), found[4000]) == ([2000, 4000], 0.75)
    assert read_evaluations(tmp_path) == {}


def test_long_lines_keep_their_ends(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, result("vit_nano1", 500, 0))
    write_rows(run_dir, [(seen, seen / 10_000) for seen in range(1, 4001)])
    (curve,) = curves_of(tmp_path)
    assert (len(curve.top1), curve.samples_seen[0], curve.samples_seen[-1]) == (MAX_POINTS, 1, 4000)


def test_runs_without_a_record_are_joined_at_their_ends(tmp_path: Path) -> None:
    for samples, top1 in ((4000, 0.5), (8000, 0.6), (16000, 0.65)):
        write_run(tmp_path, result("vit_nano1", 500, 0, samples_seen=samples, top1=top1, run_id=f"long{samples}"))
    (curve,) = curves_of(tmp_path)
    assert (curve.samples_seen, curve.top1) == ((4000, 8000, 16000), (0.5, 0.6, 0.65))
    assert curve.measure == "top-1 at the end"


def test_published_lines_follow_one_model_on_one_amount_of_data() -> None:
    curves = published_curves(load_published("scaling_vit"))
    (curve,) = (c for c in curves["jft · finetune384"] if (c.arch, c.images) == ("L/16", 30_000_000))
    # Zhai et al. (arXiv 2106.04560): L/16 on 30M images, 81.9M to 491.5M of them seen.
    assert dict(zip(curve.samples_seen, curve.top1, strict=True))[81_920_000] == pytest.approx(0.754)
    assert list(curve.samples_seen) == sorted(set(curve.samples_seen))


def test_samples_to_reach_is_straight_in_logarithms() -> None:
    curve = Curve("vit", "vit", 1, 1, 1, (100, 10_000), (0.2, 0.4), "top-1")
    assert samples_to_reach(curve, 0.3) == pytest.approx(1000)
    assert samples_to_reach(curve, 0.1) == 100
    assert samples_to_reach(curve, 0.5) is None

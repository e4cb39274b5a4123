"""`vitlight law` from its words to its numbers, on runs whose law is known."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.analysis.fake_runs import result, write_run
from tests.analysis.law_runs import ALPHA, BETA, DATA, FLOOR, MACS_PER_PARAM, SAMPLES, SIZE, SIZES, error_at, write_law
from vitlight.cli import main

TRUE = {"e": FLOOR, "A": SIZE, "B": DATA, "alpha": ALPHA, "beta": BETA}


def law(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    assert main(["law", *map(str, args), "--bootstrap=60", "--json"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def error_of(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert main(["law", *map(str, args)]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_law(tmp_path_factory.mktemp("exact"))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_law(tmp_path_factory.mktemp("noisy"), noise=0.01, seeds=(0, 1))


def test_the_law_that_the_runs_were_made_from_is_found(exact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = law(capsys, exact)
    (one,) = record["laws"]
    assert (one["name"], one["form"], one["num_runs"]) == ("family=vit", "size_data", 16)
    assert {row["name"]: row["value"] for row in one["parameters"]} == pytest.approx(TRUE, rel=1e-3)
    assert one["held_out"]["mean_abs_log_error"] < 1e-4
    assert {row["form"] for row in one["selection"]} >= {"compute", "size_data"}
    assert record["excluded"] == [] and record["not_fitted"] == []


def test_an_evaluation_sets_error_is_one_minus_its_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_law(tmp_path, archs=("vit_nano2",))
    for path in runs.rglob("result.json"):
        run = json.loads(path.read_text())
        score = {"set": "v2", "image_size": run["image_size"], "step": 1, "top1": run["top1"]}
        (path.parent / "evaluations.json").write_text(json.dumps([score]))
    whole, other = (law(capsys, runs, "--form=compute", f"--error={name}")["laws"][0] for name in ("top1", "top1_v2"))
    assert other["parameters"] == whole["parameters"]
    assert (whole["meaning"], other["meaning"]) == ("E: 1 - top1; C: train_flops", "E: 1 - top1_v2; C: train_flops")


def test_the_same_seed_gives_the_same_numbers(noisy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again = law(capsys, noisy, "--form=size_data"), law(capsys, noisy, "--form=size_data")
    assert first == again
    other = law(capsys, noisy, "--form=size_data", "--seed=1")
    assert other["laws"][0]["parameters"] != first["laws"][0]["parameters"], "the intervals are drawn anew"


def test_the_text_says_the_formula_and_always_what_was_held_out(
    noisy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["law", str(noisy), "--form=size_data", "--bootstrap=60"]) == 0
    text = capsys.readouterr().out
    record = law(capsys, noisy, "--form=size_data")["laws"][0]
    assert record["formula_with_numbers"] in text
    held = record["held_out"]
    assert f"held out: the {held['num_runs']} runs of most train_flops" in text
    assert f"{100 * held['mean_abs_log_error']:.1f} % off on average" in text
    assert held["num_fitted"] + held["num_runs"] == 32
    assert all(run["inside"] == (run["low"] <= run["observed"] <= run["high"]) for run in held["runs"])
    assert "FLOP = half a MAC" in text


def test_many_small_sets_are_counted_and_a_form_that_fails_is_not_a_score(
    exact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in range(10):
        write_run(tmp_path, result("vit_nano1", 500, 0, run_id=str(place), data_digest=f"other{place}"))
    assert main(["law", str(exact), str(tmp_path), "--bootstrap=60"]) == 0
    text = capsys.readouterr().out
    assert text.count("no law: ") == 8 and "no law for 2 other sets, either" in text
    # Without the 3 largest of 8 cells, 5 are left for the 5 parameters of size_data, and 4 computes for the 3 of compute.
    assert main(["law", str(exact), "--where=arch=vit_nano1,vit_nano4", "--hold-out=0.4", "--bootstrap=60"]) == 0
    assert "size_data not fitted" in capsys.readouterr().out


def test_where_nothing_can_be_held_out_it_says_so(exact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["law", str(exact), "--form=compute", "--where=arch=vit_nano1", "--bootstrap=60"]) == 0
    assert "held out: none, so nothing is known of how it predicts: " in capsys.readouterr().out


def test_predictions_are_the_laws(exact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = law(capsys, exact, "--form=size_data", "--predict", "params=1e6,1e8 samples_seen=1e7")
    rows = record["laws"][0]["predictions"]
    assert [row["params"] for row in rows] == [1e6, 1e8]
    for row in rows:
        assert row["error"] == pytest.approx(error_at(row["params"], 1e7), rel=1e-3)
        assert row["low"] <= row["error"] * (1 + 1e-6) and row["high"] >= row["error"] * (1 - 1e-6)
    assert [row["beyond_10x_of_what_ran"] for row in rows] == ["", "params"]


def best_at(flops: float) -> tuple[float, float]:
    """Hoffmann et al. 2022 (arXiv 2203.15556), equation 4."""
    product = flops / (6 * MACS_PER_PARAM)
    params = (ALPHA * SIZE / (BETA * DATA)) ** (1 / (ALPHA + BETA)) * product ** (BETA / (ALPHA + BETA))
    return params, product / params


def test_the_budgets_best_size_and_data_are_those_of_the_closed_form(
    exact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = law(capsys, exact, "--budget=1e15", "--frontier", "--next=0")["laws"][0]
    params, samples = best_at(1e15)
    best = record["budget"]["best"]
    assert best["size"]["value"] == pytest.approx(params, rel=1e-2)
    assert best["samples"]["value"] == pytest.approx(samples, rel=1e-2)
    assert best["error"]["value"] == pytest.approx(error_at(params, samples), rel=1e-3)
    epochs = f"{samples / max(SAMPLES):.3g} epochs"
    assert sum(epochs in line for line in record["budget"]["warnings"]) == 1, "each image was seen once in every run"
    assert record["frontier"]["size_exponent"]["value"] == pytest.approx(BETA / (ALPHA + BETA), rel=1e-2)
    for row in record["frontier"]["rows"]:
        assert row["params"] == pytest.approx(best_at(row["train_flops"])[0], rel=2e-2)
    models = record["budget"]["models"]
    assert {row["arch"] for row in models} == set(SIZES)
    for row in models:
        assert row["images_to_see"] == pytest.approx(1e15 / (6 * MACS_PER_PARAM * row["params"]))
        assert row["error"] == pytest.approx(error_at(row["params"], row["images_to_see"]), rel=1e-3)
    assert [row["error"] for row in models] == sorted(row["error"] for row in models)


def test_hours_are_flops_at_the_runs_own_rate(noisy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = law(capsys, noisy, "--form=size_data", "--budget=2h", "--rate=1e12", "--next=0")["laws"][0]["budget"]
    assert given["train_flops"] == 2 * 3600 * 1e12
    measured = law(capsys, noisy, "--form=size_data", "--budget=2h", "--next=0")["laws"][0]["budget"]
    assert measured["train_flops"] == pytest.approx(7200 * measured["rate"])


def test_distinct_images_are_asked_of_a_law_that_counts_them(exact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = law(capsys, exact, "--form=size_data", "--images=1e5")["laws"][0]
    assert record["notes"] == ["--images=100000 changes nothing: size_data does not count repeats"]


def test_next_runs_are_new_affordable_and_ready_to_start(noisy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = (noisy, "--form=size_data", "--where=arch!=vit_nano4", "--budget=1e16", "--next=2", "--trial=1e15")
    budget = law(capsys, *args)["laws"][0]["budget"]
    assert len(budget["next"]) == 2
    for run in budget["next"]:
        assert run["train_flops"] <= 1e15
        assert 0.02 <= run["narrowing"]["size"] < 1 and 0 <= run["narrowing"]["error"] < 1
        words = run["command"].split()
        assert words[:2] == ["vitlight", "fit"] and f"--model.duration.samples={run['samples']:.0f}" in words
        assert Path(words[2].removeprefix("--config=")).is_file(), "the settings of a run like it"
    assert budget["next"][0]["samples"] > max(SAMPLES) or "nano3" not in budget["next"][0]["name"]


def test_next_runs_of_a_sweep_are_its_cells_without_a_result(
    tmp_path: Path, fit_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = write_law(tmp_path / "law", noise=0.02)
    kept = [word for word in fit_args[1:] if not word.startswith(("--model.arch", "--model.duration", "--run.name"))]
    sweep = {
        "name": "more",
        "method": "grid",
        "command": ["${env}", "vitlight", "fit", *kept, "${args}"],
        "parameters": {
            "model.arch": {"values": ["vit_nano1", "vit_nano2"]},
            "model.duration.samples": {"values": [1600, 160_000]},
        },
    }
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(sweep))
    args = (runs, "--form=size_data", "--budget=1e16", f"--sweep={tmp_path / 'more.yaml'}", "--narrow=error")
    budget = law(capsys, *args)["laws"][0]["budget"]
    assert "of 4 cells of" in budget["next_rule"] and budget["next"]
    for run in budget["next"]:
        assert run["command"].startswith("vitlight fit --config=") and "--run.name=more" in run["command"]
        assert run["samples"] in (1600, 160_000)


def test_a_law_of_compute_answers_a_budget_with_its_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_law(tmp_path, archs=("vit_nano2",), noise=0.01, seeds=(0, 1, 2))
    record = law(capsys, runs, "--form=compute", "--budget=1e15", "--trial=1e14")["laws"][0]
    assert record["budget"]["error"]["low"] < record["budget"]["error"]["value"] < record["budget"]["error"]["high"]
    assert set(record["budget"]["next"][0]["narrowing"]) == {"error"}
    assert main(["law", str(runs), "--form=compute", "--budget=1e15", "--next=0", "--bootstrap=60"]) == 0
    assert f"predicted error of a new run: {record['budget']['error']['value']:.4f} (" in capsys.readouterr().out


def test_only_runs_that_no_cheaper_run_beats(exact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = law(capsys, exact, "--form=compute_shift", "--pareto")
    points = record["laws"][0]["points"]
    assert len(points) + len(record["excluded"]) == 16 and record["excluded"]
    ordered = sorted(points, key=lambda row: row["compute"])
    errors = [row["error"] for row in ordered]
    assert errors == sorted(errors, reverse=True)
    assert {one["reason"] for one in record["excluded"]} == {"another run of no more compute has less error (--pareto)"}


def test_out_holds_the_record_and_a_figure(noisy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("size_data", "compute"):
        record = law(capsys, noisy, f"--form={form}", f"--out={tmp_path / form}")
        assert json.loads((tmp_path / form / "law.json").read_text()) == record
        assert (tmp_path / form / "law.png").read_bytes().startswith(b"\x89PNG")
        svg = (tmp_path / form / "law.svg").read_text()
        assert svg.startswith("<?xml") and "</svg>" in svg
        assert sorted(path.name for path in (tmp_path / form).iterdir()) == ["law.json", "law.png", "law.svg"]


def test_numbers_in_json_are_json(noisy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["law", str(noisy), "--bootstrap=60", "--frontier", "--json"]) == 0

    def refuse(name: str) -> float:
        raise AssertionError(name)

    record = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert all(math.isfinite(row["error"]) for row in record["laws"][0]["points"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--where=archs=vit_nano1"], "no column 'archs'; did you mean arch"),
        (["--where=arch=vit_nano9"], "leaves no run; the column has vit_nano1, vit_nano2"),
        (["--where=arch<3"], "arch is text; compare it with = or !="),
        (["--where=arch"], "is no condition; write COLUMN=VALUE"),
        (["--where=params=big"], "'big' is not a number"),
        (["--hold-out=1"], "--hold-out=1 is not between 0 and 1"),
        (["--bootstrap=5"], "--bootstrap=5 is below 20"),
        (["--budget=-3"], "--budget=-3 is not above 0"),
        (["--budget=2x"], "'2x' is not a number"),
        (["--next=2"], "--next is about the next run for a budget"),
        (["--rate=1e12", "--budget=1e15"], "--rate=1e+12 turns hours into FLOPs"),
        (["--form=compute", "--size=forward_macs"], "--size=forward_macs is about a law of size and data"),
        (["--sweep=a.yaml"], "--sweep is about the next run for a budget; give --budget, too"),
        (["--predict=flops=3"], "'flops' is no axis of the law; did you mean train_flops"),
        (["--predict=params"], "'params' is not COLUMN=VALUE"),
        (["--by=family", "--pool=family"], "--by=family splits what --pool=family joins"),
        (["--error=top_1"], "no column 'top_1'"),
        (["--form=power"], "invalid choice: 'power'"),
    ],
)
def test_bad_input_is_one_line(exact: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    assert message in error_of(capsys, exact, *args)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--form=compute", "--frontier"], "--frontier needs a law of size and data"),
        (["--form=size_data", "--predict=params=3"], "--predict lacks samples_seen"),
        (["--form=size_data_repeated"], "take size_data"),
    ],
)
def test_a_set_that_has_no_law_says_why(
    exact: Path, capsys: pytest.CaptureFixture[str], args: list[str], reason: str
) -> None:
    assert main(["law", str(exact), "--bootstrap=60", *args]) == 1
    assert reason in capsys.readouterr().out

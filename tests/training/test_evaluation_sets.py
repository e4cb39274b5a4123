"""Evaluation sets from end to end: hand-counted accuracies, on one and on two ranks, in the run and in its table."""

import json
import math
import shutil

import pytest
import torch

from tests.conftest import tiny_sample
from tests.data.tars import write_tar
from tests.training.ranks import Ranks
from vitlight.analysis.runs import load_runs
from vitlight.cli import main
from vitlight.data.evaluation_sets import EvaluationSet, open_evaluation_sets
from vitlight.data.training_set import IndexOptions
from vitlight.training.accuracy import ExactAccuracy, wilson_interval
from vitlight.training.checkpoint import checkpoint_path
from vitlight.training.evaluation_sets import SetScore
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run
from vitlight.training.trained import load_trained

NUM_IMAGES = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """23 images in 2 shards, whose own classes are called a to d, with files of labels and a map."""
    folder = tmp_path_factory.mktemp("set")
    samples = [tiny_sample(i, "test") for i in range(NUM_IMAGES)]
    for first, last in ((0, 20), (20, NUM_IMAGES)):
        members = []
        for sample in samples[first:last]:
            members += [(f"{sample.key}.{sample.extension}", sample.image), (f"{sample.key}.cls", b"%d" % sample.label)]
        write_tar(folder / f"{first}.tar", members)
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    (folder / "real.json").write_text(json.dumps([[i % 4, (i + 1) % 4] if i % 3 else [] for i in range(NUM_IMAGES)]))
    (folder / "map.json").write_text(json.dumps({"a": [1, 2], "c": 0, "d": []}))
    (folder / "sets.yaml").write_text(
        f"plain: {{shards: {folder}}}\n"
        f"real: {{shards: {folder}, label_file: {folder / 'real.json'}}}\n"
        f"mapped: {{shards: {folder}, class_map: {folder / 'map.json'}}}\n"
        f"restricted: {{shards: {folder}, class_map: {folder / 'map.json'}, restrict: true}}\n"
    )
    return folder


def counted_by_hand(run):
    """Right answers and images of each set, by the rules in words, from the logits of the run's last checkpoint."""
    trained = load_trained(run.path, which="last")
    images = torch.stack([_pixels(i) for i in range(NUM_IMAGES)])
    logits = trained.logits(images)
    free = logits.argmax(1).tolist()
    among = logits[:, [0, 1, 2]].argmax(1).tolist()
    own = [i % 4 for i in range(NUM_IMAGES)]
    mapped = {0: (1, 2), 2: (0,)}
    return {
        "plain": (sum(p == label for p, label in zip(free, own, strict=True)), NUM_IMAGES),
        "real": (sum(free[i] in (i % 4, (i + 1) % 4) for i in range(NUM_IMAGES) if i % 3), 15),
        "mapped": (sum(free[i] in mapped[own[i]] for i in range(NUM_IMAGES) if own[i] in mapped), 12),
        "restricted": (sum(among[i] in mapped[own[i]] for i in range(NUM_IMAGES) if own[i] in mapped), 12),
    }


def _pixels(i):
    from vitlight.data.decode import decode_image, resize_and_centre

    return resize_and_centre(decode_image(tiny_sample(i, "test").image), 28, 0.875).permute(2, 0, 1)


def scores(run):
    return {
        score["set"]: (score["top1_count"], score["num_images"])
        for score in json.loads((run.path / "evaluations.json").read_bytes())
    }


def test_a_run_ends_with_its_sets_and_the_table_has_them(fit_args, folder, capsys):
    args = [*fit_args, f"--data.evaluation_sets={folder / 'sets.yaml'}"]
    assert main(args) == 0
    run = RunDirectory(resolve_run(args).run_dir)
    expected = counted_by_hand(run)
    assert scores(run) == expected
    assert resolve_run(fit_args).run_id == run.path.name  # a set is no part of what a run is
    written = {score["set"]: score for score in json.loads((run.path / "evaluations.json").read_bytes())}
    assert [written[name]["num_left_out"] for name in ("plain", "real", "mapped", "restricted")] == [0, 8, 11, 11]
    assert [written[name]["num_candidates"] for name in ("plain", "restricted")] == [None, 3]
    for score in written.values():
        assert score["top1"] == score["top1_count"] / score["num_images"]
        assert score["top1_low"] < score["top1"] < score["top1_high"] or score["top1"] in (0.0, 1.0)
    row = next(row for row in run.rows() if row["event"] == "test")
    assert row["test/real_top1"] == expected["real"][0] / 15
    assert row["test/num_images"] == 61
    table = load_runs(run.path)
    for name, (right, total) in expected.items():
        assert table[f"top1_{name}"][0] == right / total
    out = capsys.readouterr().out
    assert f"real: top-1 {100 * expected['real'][0] / 15:.2f} % ({expected['real'][0]} of 15; 95 % interval" in out
    assert "8 images with no label are left out" in out
    assert main(["table", str(run.path.parent)]) == 0
    assert "top1_restricted" in capsys.readouterr().out


def test_a_run_may_have_no_other_test_than_its_sets(fit_args, folder):
    args = [*fit_args, "--data.test=null", f"--data.evaluation_sets={folder / 'sets.yaml'}"]
    assert main(args) == 0
    run = RunDirectory(resolve_run(args).run_dir)
    result = run.read_result()
    assert (result["status"], result["eval_split"]) == ("done", "val")
    assert scores(run) == counted_by_hand(run)


def test_sets_are_added_to_a_finished_run(fit_args, folder, capsys):
    assert main(fit_args) == 0
    run = RunDirectory(resolve_run(fit_args).run_dir)
    assert not (run.path / "evaluations.json").exists()
    checkpoint = max(run.checkpoints.glob("*.ckpt"))
    capsys.readouterr()
    words = ["test", f"--ckpt_path={checkpoint}", "--data.eval_batch_size=7"]
    assert main([*words, f"--data.evaluation_sets={folder / 'sets.yaml'}"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["split"] == "test"
    assert lines[0]["num_images"] == 61
    assert [line["set"] for line in lines[1:]] == ["plain", "real", "mapped", "restricted"]
    assert scores(run) == counted_by_hand(run)
    alone = f"{{real: {{shards: {folder}, label_file: {folder / 'real.json'}}}}}"
    assert main([*words, "--data.test=null", f"--data.evaluation_sets={alone}"]) == 0
    assert [json.loads(line)["set"] for line in capsys.readouterr().out.splitlines()] == ["real"]
    assert scores(run) == counted_by_hand(run)
    at_56 = [*words, "--data.test=null", "--data.image_size=56", f"--data.evaluation_sets={alone}"]
    assert main(at_56) == 0  # position embeddings are resized, and the run's own accuracies stay
    kept = json.loads((run.path / "evaluations.json").read_bytes())
    assert [score["image_size"] for score in kept] == [28, 28, 28, 28, 56]
    assert load_runs(run.path)["top1_real"][0] == counted_by_hand(run)["real"][0] / 15


def test_a_missing_file_stops_the_run_before_it_trains(fit_args, folder, capsys):
    args = [*fit_args, f"--data.evaluation_sets={{real: {{shards: {folder}, label_file: {folder / 'absent.json'}}}}}"]
    assert main(args) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"vitlight: error: {folder / 'absent.json'}: can't read the labels: No such file or directory"
    assert RunDirectory(resolve_run(args).run_dir).rows() == []


def test_two_ranks_count_each_image_once(tiny_shards, folder, tmp_path, zygote):
    ranks = Ranks(zygote, tiny_shards, tmp_path)
    options = (f"--data.evaluation_sets={folder / 'sets.yaml'}", "--data.eval_batch_size=5")
    run = ranks.fit("two", 2, *options)
    assert scores(run) == counted_by_hand(run)
    one = tmp_path / "one"
    shutil.copytree(run.path, one)
    (one / "evaluations.json").unlink()
    checkpoint = checkpoint_path(one / "checkpoints", 12)
    assert main(["test", f"--ckpt_path={checkpoint}", "--data.eval_batch_size=64"]) == 0
    assert scores(RunDirectory(one)) == scores(run)


def test_ties_go_to_the_lower_class_and_what_is_not_finite_is_wrong(folder):
    sets, _ = open_evaluation_sets({"plain": EvaluationSet(str(folder))}, 4, None, IndexOptions())
    score = SetScore(sets[0], 4)
    logits = torch.zeros(NUM_IMAGES, 4)
    logits[4, 2] = math.nan  # of class 0
    logits[8, 3] = -math.inf  # of class 0
    score.update(logits[:20], torch.ones(20), 0)
    score.update(logits[20:], torch.tensor([1.0, 1.0, 1.0]), 20)
    result = score.compute()
    assert result["top1_count"] == 6 - 2  # the six of class 0, which comes first in a tie
    assert result["top5"] == (NUM_IMAGES - 2) / NUM_IMAGES
    assert (result["num_nonfinite"], result["num_images"]) == (2, NUM_IMAGES)


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [
        (0, 10, (0.0, 0.2775327998628892)),
        (5, 10, (0.2365930905125640, 0.7634069094874360)),
        (81, 263, (0.2552886, 0.3662061)),  # Newcombe 1998, Table I, method 3: 0.2553 to 0.3662
    ],
)
def test_the_interval_is_wilsons(count, total, expected):
    assert wilson_interval(count, total) == pytest.approx(expected, abs=2e-5)


def test_the_mean_over_classes_counts_each_class_that_is_there_alike():
    accuracy = ExactAccuracy(4)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 3, 3])
    predicted = torch.tensor([0, 0, 0, 1, 1, 0, 3, 3])
    weight = torch.tensor([1.0] * 7 + [0.0])
    logits = torch.nn.functional.one_hot(predicted, 4).float()
    accuracy.update(logits[:5], labels[:5], torch.zeros(5), weight[:5])
    accuracy.update(logits[5:], labels[5:], torch.zeros(3), weight[5:])
    result = accuracy.compute()
    assert result["top1"] == 5 / 7
    assert result["mean_class_top1"] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    uncounted = ExactAccuracy()
    uncounted.update(logits, labels, torch.zeros(8), weight)
    assert "mean_class_top1" not in uncounted.compute()

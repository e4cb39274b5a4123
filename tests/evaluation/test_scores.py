"""What is counted, and that no penalty is chosen on what is reported."""

import statistics

import numpy as np
import pytest

from tests.evaluation.fake_features import fake_features
from vitlight.evaluation.features import FeatureSet
from vitlight.evaluation.ridge import FIXED_L2, L2_CHOICES, fit_ridge
from vitlight.evaluation.scores import Score, score_few_shot, score_linear, score_neighbours

TRAIN, VAL, TEST = (fake_features(num, 16, 5, seed, spread=3.0) for seed, num in enumerate((200, 60, 90)))
# (S, K, k): of each class other images for each seed.
CHOSEN = np.stack([np.arange(seed, seed + 75).reshape(15, 5).T for seed in (0, 5, 100)])


def subset(rows: np.ndarray) -> FeatureSet:
    return FeatureSet(TRAIN.values[rows.ravel()], TRAIN.labels[rows.ravel()])


def test_few_shot_scores_are_those_of_a_classifier_a_seed():
    assert (TRAIN.labels.numpy()[CHOSEN] == np.arange(5)[:, None]).all()
    scores = score_few_shot(TRAIN, CHOSEN, (1, 10), TEST, None)
    assert [score.column for score in scores] == ["few_shot/1_shot", "few_shot/10_shot"]
    for score, shots in zip(scores, (1, 10), strict=True):
        ridges = [fit_ridge(subset(rows[:, :shots]), 5) for rows in CHOSEN]
        correct = [int((ridge.predict(TEST.values, FIXED_L2) == TEST.labels).sum()) for ridge in ridges]
        assert score.num_correct == tuple(correct)
        assert score.top1 == sum(correct) / 270
        assert score.top1_std == pytest.approx(statistics.stdev(each / 90 for each in correct))
        assert (score.num_train, score.num_images) == (5 * shots, 90)
    assert scores[1].top1 > scores[0].top1


def test_the_penalty_is_chosen_on_val_alone():
    fixed, tuned = score_few_shot(TRAIN, CHOSEN, (10,), TEST, VAL)
    ridges = [fit_ridge(subset(rows[:, :10]), 5) for rows in CHOSEN]
    on_val = np.sum([ridge.count_correct(VAL, L2_CHOICES) for ridge in ridges], 0)
    best = max(l2 for l2, count in zip(L2_CHOICES, on_val, strict=True) if count == on_val.max())
    assert tuned.column == "few_shot/10_shot_tuned"
    assert tuned.setting == f"l2=2^{int(np.log2(best))}, chosen on val"
    assert tuned.num_correct == tuple(ridge.count_correct(TEST, [best])[0] for ridge in ridges)
    others = FeatureSet(TEST.values.flip(0), TEST.labels)  # another test set, and no other choice
    assert score_few_shot(TRAIN, CHOSEN, (10,), others, VAL)[1].setting == tuned.setting
    assert [fixed] == score_few_shot(TRAIN, CHOSEN, (10,), TEST, None)


def test_linear_probes_choose_on_val_and_without_it_not_at_all():
    scores = {score.column: score for score in score_linear(TRAIN, 5, TEST, VAL)}
    assert list(scores) == ["linear/ridge", "linear/ridge_tuned", "linear/logistic", "linear/logistic_tuned"]
    ridge = fit_ridge(TRAIN, 5)
    on_val = ridge.count_correct(VAL, L2_CHOICES)
    best = max(l2 for l2, count in zip(L2_CHOICES, on_val, strict=True) if count == max(on_val))
    assert scores["linear/ridge"].num_correct == tuple(ridge.count_correct(TEST, [FIXED_L2]))
    assert scores["linear/ridge_tuned"].num_correct == tuple(ridge.count_correct(TEST, [best]))
    assert scores["linear/logistic"].setting == "C=1"
    assert scores["linear/logistic_tuned"].setting.endswith("chosen on val")
    assert scores["linear/logistic"].top1_std is None
    alone = score_linear(TRAIN, 5, TEST, None)
    assert [score.column for score in alone] == ["linear/ridge", "linear/logistic"]
    assert alone[0] == scores["linear/ridge"]
    assert alone[1].top1 == pytest.approx(scores["linear/logistic"].top1, abs=0.02)  # it began elsewhere


def test_neighbours_are_scored_with_and_without_weights():
    scores = score_neighbours(TRAIN, (1, 10), 5, TEST)
    assert [score.column for score in scores] == ["knn/1", "knn/1_majority", "knn/10", "knn/10_majority"]
    assert scores[0].num_correct == scores[1].num_correct  # one neighbour: weights change nothing
    assert all(score.num_train == 200 and 0.2 < score.top1 < 1 for score in scores)


def test_a_score_comes_back_from_its_record():
    score = Score("few_shot/5_shot", "l2=1024", 25, 90, (30, 40, 35))
    assert Score.from_record(score.as_record()) == score
    assert score.as_record()["top1"] == 105 / 270

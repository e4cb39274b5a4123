"""Ridge regression equals scikit-learn's on the same features."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as TheirRidge

from tests.evaluation.fake_features import fake_features
from vitlight.evaluation import ridge
from vitlight.evaluation.features import FeatureSet
from vitlight.evaluation.ridge import FIXED_L2, L2_CHOICES, fit_ridge


def theirs(train: FeatureSet, features: torch.Tensor, num_classes: int, l2: float) -> np.ndarray:
    """Scores (n, K): standardised by the training features, a last column of 100, targets of -1 and 1."""
    x, new = train.values.double().numpy(), features.double().numpy()
    mean, std = x.mean(0), x.std(0) + 1e-5
    x, new = (np.c_[(part - mean) / std, np.full(len(part), 100.0)] for part in (x, new))
    targets = 2.0 * np.eye(num_classes)[train.labels.numpy()] - 1.0
    return TheirRidge(alpha=l2, fit_intercept=False, solver="cholesky").fit(x, targets).predict(new)


# More images than features, fewer, one a class, and as many as features with their bias.
@pytest.mark.parametrize("num", [300, 40, 7, 24, 25])
def test_predictions_equal_those_of_scikit_learn(num):
    train, images = fake_features(num, 24, 7, seed=0), fake_features(500, 24, 7, seed=1)
    fitted = fit_ridge(train, 7)
    assert len(fitted.eigenvalues) == min(num, 25)
    for l2 in (2.0**-6, 1.0, FIXED_L2, 2.0**20):
        expected = theirs(train, images.values, 7, l2)
        x = torch.nn.functional.pad(fitted.moments.standardized(images.values), (0, 1), value=100.0)
        np.testing.assert_allclose((x @ fitted.weights(l2)).numpy(), expected, rtol=1e-7, atol=1e-9)
        assert fitted.predict(images.values, l2).tolist() == expected.argmax(1).tolist()
    correct = [int((fitted.predict(images.values, l2) == images.labels).sum()) for l2 in L2_CHOICES]
    assert fitted.count_correct(images, L2_CHOICES) == correct
    assert 100 < max(correct) < 500  # neither chance nor certain


def test_chunks_change_nothing_but_the_last_bits(monkeypatch):
    train, images = fake_features(90, 12, 5, seed=2), fake_features(200, 12, 5, seed=3)
    expected = fit_ridge(train, 5)
    monkeypatch.setattr(ridge, "_CHUNK", 11)
    fitted = fit_ridge(train, 5)
    torch.testing.assert_close(fitted.eigenvalues, expected.eigenvalues, rtol=1e-12, atol=1e-9)
    assert fitted.count_correct(images, L2_CHOICES) == expected.count_correct(images, L2_CHOICES)


def test_of_equal_scores_the_first_class_wins_and_constant_features_do_no_harm():
    train = FeatureSet(torch.ones(6, 3), torch.tensor([0, 1, 2, 2, 1, 0]))
    assert fit_ridge(train, 3).predict(torch.ones(4, 3), FIXED_L2).tolist() == [0, 0, 0, 0]
    assert fit_ridge(train, 4).count_correct(FeatureSet(torch.ones(2, 3), torch.tensor([3, 0])), [1.0]) == [1]

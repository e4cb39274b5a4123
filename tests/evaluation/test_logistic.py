"""Logistic regression equals scikit-learn's on the same standardised features."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.evaluation.fake_features import fake_features
from vitlight.evaluation import logistic
from vitlight.evaluation.logistic import fit_logistic


def test_weights_and_predictions_equal_those_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(logistic, "_TOLERANCE", 1e-8)
    train, images = fake_features(300, 10, 5, seed=0), fake_features(200, 10, 5, seed=1)
    x = train.values.double().numpy()
    x, new = ((part - x.mean(0)) / (x.std(0) + 1e-5) for part in (x, images.values.double().numpy()))
    fitted = list(fit_logistic(train, 5, [1.0, 0.01]))
    assert [each.c for each in fitted] == [0.01, 1.0]
    for each in fitted:
        their = LogisticRegression(C=each.c, tol=1e-8, max_iter=10_000).fit(x, train.labels.numpy())
        np.testing.assert_allclose(each.weights.T.numpy(), their.coef_, atol=1e-5)
        bias = each.bias - each.bias.mean()  # a number added to all biases changes nothing
        np.testing.assert_allclose(bias.numpy(), their.intercept_ - their.intercept_.mean(), atol=1e-5)
        assert each.predict(images.values).tolist() == their.predict(new).tolist()
        assert each.converged
        assert 60 < each.count_correct(images) < 200


def test_two_classes_are_decided_as_by_scikit_learn(monkeypatch):
    monkeypatch.setattr(logistic, "_TOLERANCE", 1e-8)
    train = fake_features(300, 10, 2, seed=0)
    x = train.values.double().numpy()
    x = (x - x.mean(0)) / (x.std(0) + 1e-5)
    for each in fit_logistic(train, 2, [1.0, 0.01]):
        their = LogisticRegression(C=each.c, tol=1e-8, max_iter=10_000).fit(x, train.labels.numpy())
        weights, bias = each.weights[:, 1] - each.weights[:, 0], each.bias[1] - each.bias[0]
        np.testing.assert_allclose(weights.numpy(), their.coef_[0], atol=1e-5)
        assert float(bias) == pytest.approx(their.intercept_[0], abs=1e-5)
        assert each.converged


def test_a_fit_that_is_cut_off_says_so(monkeypatch):
    monkeypatch.setattr(logistic, "_MAX_STEPS", 3)
    (fitted,) = fit_logistic(fake_features(100, 6, 3, seed=0), 3, [1.0])
    assert (fitted.converged, fitted.num_steps) == (False, 3)


def test_features_that_say_nothing_give_the_largest_class():
    train = fake_features(30, 4, 3, seed=0)
    train.values.zero_()
    train.labels[:] = 2
    train.labels[:5] = 1
    (fitted,) = fit_logistic(train, 3, [1.0])
    assert fitted.predict(train.values).unique().tolist() == [2]
    assert fitted.bias.softmax(0)[2].item() == pytest.approx(25 / 30, abs=1e-3)

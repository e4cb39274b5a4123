"""Nearest neighbours equal scikit-learn's on the same features, and ties are decided as is said."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from tests.evaluation.fake_features import fake_features
from vitlight.errors import InputError
from vitlight.evaluation import neighbours
from vitlight.evaluation.features import FeatureSet
from vitlight.evaluation.neighbours import TEMPERATURE, find_neighbours

KS = (1, 10, 20)


@pytest.mark.parametrize(("queries", "bank"), [(1024, 16_384), (37, 29), (64, 8)])  # one block; many; blocks below k
def test_predictions_equal_those_of_scikit_learn(monkeypatch, queries, bank):
    monkeypatch.setattr(neighbours, "_QUERIES", queries)
    monkeypatch.setattr(neighbours, "_BANK", bank)
    train, images = fake_features(400, 12, 7, seed=0), fake_features(150, 12, 7, seed=1)
    found = find_neighbours(train, images.values, KS)
    for k in KS:
        for temperature, weights in (
            (None, "uniform"),
            (TEMPERATURE, lambda distances: np.exp((1 - distances) / TEMPERATURE)),
        ):
            their = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
            their.fit(train.values.double().numpy(), train.labels.numpy())
            expected = their.predict(images.values.double().numpy())
            assert found.predict(k, 7, temperature).tolist() == expected.tolist()
            assert 0.2 < (expected == images.labels.numpy()).mean() < 0.999


def tied() -> FeatureSet:
    """Nine copies of one direction at different lengths and two of another, in the order of the data."""
    along = torch.tensor([[3.0, 4.0, 1.0]]) * torch.tensor(
        [[1.0], [2.0], [0.5], [7.0], [3.0], [1.0], [9.0], [1.1], [0.3]]
    )
    across = torch.tensor([[-4.0, 3.0, 0.0], [-8.0, 6.0, 0.0]])
    return FeatureSet(torch.cat([along, across]), torch.tensor([2, 1, 0, 3, 3, 3, 3, 0, 1, 2, 2]))


@pytest.mark.parametrize("bank", [16_384, 4, 3, 1])
def test_of_equally_similar_images_the_first_are_neighbours(monkeypatch, bank):
    monkeypatch.setattr(neighbours, "_BANK", bank)
    for k, expected in ((1, [2]), (3, [2, 1, 0]), (5, [2, 1, 0, 3, 3]), (9, [2, 1, 0, 3, 3, 3, 3, 0, 1])):
        found = find_neighbours(tied(), torch.tensor([[6.0, 8.0, 2.0]]), [k])
        assert found.labels.tolist() == [expected]
    assert find_neighbours(tied(), torch.zeros(1, 3), [4]).labels.tolist() == [[2, 1, 0, 3]]  # alike to none: 0 to all


def test_of_equal_votes_the_first_class_wins():
    found = find_neighbours(tied(), torch.tensor([[3.0, 4.0, 1.0]]), [3])
    assert found.predict(3, 4, None).tolist() == found.predict(3, 4).tolist() == [0]
    assert found.predict(1, 4).tolist() == [2]


def test_a_close_neighbour_outweighs_two_far_ones():
    train = FeatureSet(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0, 0]))
    found = find_neighbours(train, torch.tensor([[1.0, 0.1]]), [3])
    assert (found.predict(3, 2, None).item(), found.predict(3, 2).item()) == (0, 1)


def test_more_neighbours_than_images_are_refused():
    with pytest.raises(InputError, match="12 nearest neighbours of 11 training images"):
        find_neighbours(tied(), torch.ones(1, 3), [2, 12])

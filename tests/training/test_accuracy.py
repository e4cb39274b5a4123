import numpy as np
import torch

from vitlight.training.accuracy import ExactAccuracy, target_ranks


def reference_counts(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray, k: int) -> int:
    """Five lines of numpy: stable sort, so equal logits are ordered by class; a NaN anywhere is never correct."""
    count = 0
    for row, label, counted in zip(logits, labels, weight, strict=True):
        order = np.argsort(-row, kind="stable")[:k]
        count += bool(counted) and not np.isnan(row).any() and label in order
    return count


def test_counts_equal_the_reference_with_ties_nan_and_weights():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (500, 9)).astype(np.float32)  # many ties
    logits[::17, 3] = np.nan
    logits[5] = 0.0
    labels, weight = rng.integers(0, 9, 500), (rng.random(500) < 0.8).astype(np.float32)
    losses = rng.random(500).astype(np.float32)
    expected = {k: reference_counts(logits, labels, weight, k) for k in (1, 5)}
    for batch in (1, 7, 500):
        metric = ExactAccuracy()
        for start in range(0, 500, batch):
            part = slice(start, start + batch)
            metric.update(*(torch.from_numpy(array[part]) for array in (logits, labels, losses, weight)))
        result = metric.compute()
        assert result["num_images"] == int(weight.sum())
        assert result["top1_count"] == expected[1]
        assert result["top1"] == expected[1] / weight.sum()
        assert result["top5"] == expected[5] / weight.sum()
        assert abs(result["loss"] - losses[weight > 0].astype(np.float64).mean()) < 1e-9


def test_a_model_of_nans_scores_nothing():
    logits, labels = torch.full((8, 8), torch.nan), torch.arange(8)
    assert target_ranks(logits, labels).tolist() == [8] * 8


def test_infinite_losses_show_and_padding_does_not():
    metric = ExactAccuracy()
    metric.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 0.0]))
    assert (metric.compute()["loss"], metric.compute()["num_nonfinite"]) == (1.0, 0)


def test_images_without_finite_logits_or_loss_are_counted():
    logits = torch.tensor([[1.0, -torch.inf], [torch.nan, 0.0], [1.0, 0.0], [1.0, 0.0], [torch.nan, torch.nan]])
    losses, weight = torch.tensor([0.5, torch.nan, torch.inf, 0.5, torch.nan]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    metric = ExactAccuracy()
    metric.update(logits, torch.zeros(5, dtype=torch.int64), losses, weight)
    assert metric.compute()["num_nonfinite"] == 3  # one of them with a finite loss

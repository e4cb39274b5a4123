import pytest
import torch

from tests.reference_libraries import reference
from vitlight.errors import InputError
from vitlight.training.losses import check_loss, image_losses

LABELS = torch.tensor([2, 0, 4])
SEVERAL = torch.tensor([[1.0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 1, 0, 1, 0]])
MIXED = torch.tensor([[0.3, 0, 0.7, 0, 0], [1, 0, 0, 0, 0], [0, 0.5, 0, 0.5, 0]])


@pytest.fixture
def logits():
    return 2 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("targets", [None, SEVERAL, MIXED], ids=["one", "several", "mixed"])
def test_losses_are_their_formulas(logits, targets, smoothing):
    dense = torch.eye(5)[LABELS] if targets is None else targets
    given = None if targets is None else targets.double()
    shared = (dense / dense.sum(1, keepdim=True)).double()
    p, q = logits.softmax(1), logits.sigmoid()
    smooth = (1 - smoothing) * shared + smoothing / 5
    found = image_losses(logits, LABELS, given, "softmax", smoothing)
    torch.testing.assert_close(found, -(smooth * p.log()).sum(1))
    smooth = (1 - smoothing) * dense.double() + smoothing / 5
    binary = -(smooth * q.log() + (1 - smooth) * (1 - q).log())
    torch.testing.assert_close(image_losses(logits, LABELS, given, "sigmoid", smoothing), binary.sum(1))
    torch.testing.assert_close(image_losses(logits, LABELS, given, "sigmoid_mean", smoothing), binary.mean(1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_timms(logits, smoothing):
    timm = reference("timm.loss")
    binary = timm.BinaryCrossEntropy(smoothing=smoothing)(logits, LABELS)
    torch.testing.assert_close(image_losses(logits, LABELS, None, "sigmoid_mean", smoothing).mean(), binary)
    softmax = timm.LabelSmoothingCrossEntropy(smoothing)(logits, LABELS)
    torch.testing.assert_close(image_losses(logits, LABELS, None, "softmax", smoothing).mean(), softmax)


def test_smoothing_mixed_targets_is_mixing_smoothed_targets(logits):
    """timm's mixup smooths both targets, then mixes them."""
    mixed = reference("timm.data.mixup").mixup_target(LABELS, 5, lam=0.3, smoothing=0.1)
    plain = 0.3 * torch.eye(5)[LABELS] + 0.7 * torch.eye(5)[LABELS.flip(0)]
    for loss in ("softmax", "sigmoid"):
        found = image_losses(logits, LABELS, plain.double(), loss, 0.1)
        torch.testing.assert_close(found, image_losses(logits, LABELS, mixed.double(), loss), rtol=1e-6, atol=1e-6)


def test_other_losses_and_smoothings_are_refused():
    with pytest.raises(InputError, match=r"model\.loss=bce is not one of softmax, sigmoid, sigmoid_mean"):
        check_loss("bce", 0.0)
    with pytest.raises(InputError, match=r"model\.label_smoothing=1\.0 is not in \[0, 1\)"):
        check_loss("sigmoid", 1.0)

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vitlight.cli import main
from vitlight.data.plan import DataPlan, PlanSource
from vitlight.data.subset import AllRows
from vitlight.errors import InputError
from vitlight.models import build_model
from vitlight.training.classifier import ImageClassifier
from vitlight.training.optim import Optimizer
from vitlight.training.position import axes_at
from vitlight.training.schedule import Duration, Schedule


def build(**changes) -> ImageClassifier:
    settings = {"arch": "vit_nano1", "num_classes": 4, "image_size": 28, "duration": Duration(samples=160), **changes}
    model = ImageClassifier(**settings)
    plan = DataPlan(PlanSource(AllRows(np.array([0, 40])), 40), seed=0, global_batch_size=16)
    model._trainer = SimpleNamespace(
        global_step=3, global_rank=0, datamodule=None, optimizers=[], accumulate_grad_batches=1
    )
    type(model).images = property(lambda self: SimpleNamespace(plan=plan))
    return model


@pytest.fixture(autouse=True)
def restore_images_property():
    original = ImageClassifier.images
    yield
    ImageClassifier.images = original


def test_axes_are_exact_at_any_scale():
    plan = DataPlan(PlanSource(AllRows(np.array([0, 1000])), 1000), seed=0, global_batch_size=4096)
    axes = axes_at(2**40, plan, 10**12)
    assert axes["data/samples_seen"] == 2**52
    assert axes["data/unique_samples_seen"] == 1000
    assert axes["compute/train_flops"] == 6 * 10**12 * 2**52  # beyond 64 bits, and still an integer
    assert axes_at(0, plan, 1) == {
        "data/samples_seen": 0,
        "data/unique_samples_seen": 0,
        "data/epochs": 0.0,
        "compute/train_flops": 0,
    }


def test_the_rate_of_a_step_is_the_schedule_at_the_middle_of_its_batch():
    schedule = Schedule(warmup_samples=32)
    model = build(optimizer=Optimizer(lr=0.5), schedule=schedule)
    assert model.horizon_steps == 10
    assert model.learning_rate_at(0) == 0.5 * 8 / 32
    for step in range(10):
        assert model.learning_rate_at(step) == 0.5 * schedule.factor(16 * step + 8, 160) > 0


def test_every_group_is_given_its_part_of_the_rate():
    model = build(optimizer=Optimizer(lr=0.5, layer_decay=0.5), model_options={"depth": 2})
    model.trainer.optimizers = [model.configure_optimizers()]
    model.on_train_batch_start({}, 0)
    rate = model.learning_rate_at(3)
    # Two blocks: depths 0 to 3, each with decayed weights and others.
    assert [group["lr"] / rate for group in model.trainer.optimizers[0].param_groups] == [
        *(1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 2, 1 / 2, 1, 1)
    ]


def test_weights_follow_the_seed():
    weights = [build(seed=seed).model.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_dropout_follows_seed_and_step_alone():
    model = build(model_options={"drop_path_rate": 0.5}).train()
    model.trainer.optimizers = [SimpleNamespace(param_groups=[{"lr": 0.0}])]
    # A classifier starts at zero, which hides what comes before it.
    torch.nn.init.normal_(
        next(m for m in model.model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 4).weight
    )
    batch = {
        "image": torch.randn(16, 3, 28, 28),
        "label": torch.zeros(16, dtype=torch.int64),
        "weight": torch.ones(16),
    }

    def loss(step: int) -> float:
        torch.randn(7)  # whatever else was drawn before
        model.trainer.global_step = step
        model.on_train_batch_start(batch, 0)
        return model.training_step(batch, 0).item()

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)
    assert model.trainer.optimizers[0].param_groups[0]["lr"] == model.learning_rate_at(4)


def random_batch(*labels: int, weights=None, **more) -> dict[str, torch.Tensor]:
    n = len(labels)
    weight = torch.ones(n) if weights is None else torch.tensor(weights)
    return {"image": torch.randn(n, 3, 28, 28), "label": torch.tensor(labels), "weight": weight, **more}


def spread_logits(model: ImageClassifier) -> ImageClassifier:
    """A classifier starts at zero, where every logit and every loss is equal."""
    head = next(m for m in model.model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 4)
    torch.nn.init.normal_(head.weight)
    return model.eval()


def test_training_loss_is_smoothed_cross_entropy():
    model = spread_logits(build(label_smoothing=0.2))
    batch = random_batch(0, 1, 3)
    logits = model.model(batch["image"])
    expected = -(0.8 * logits.log_softmax(1)[range(3), batch["label"]] + 0.2 * logits.log_softmax(1).mean(1)).mean()
    assert model.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(InputError, match=r"model\.label_smoothing=1\.0"):
        build(label_smoothing=1.0)


def test_skipped_images_count_for_nothing_and_make_no_other_count_more():
    model = spread_logits(build())
    batch = random_batch(0, 1, 3, weights=[1.0, 0.0, 1.0])
    losses = -model.model(batch["image"]).log_softmax(1)[range(3), batch["label"]]
    assert model.training_step(batch, 0).item() == pytest.approx((losses[0] + losses[2]).item() / 3, rel=1e-6)


def test_softmax_shares_the_target_among_several_labels():
    model = spread_logits(build())
    batch = random_batch(0, 1, target=torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
    logs = model.model(batch["image"]).log_softmax(1)
    expected = -((logs[0, 0] + logs[0, 2]) / 2 + logs[1, 1]) / 2
    assert model.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("loss", "share"), [("sigmoid", 1), ("sigmoid_mean", 1 / 4)])
def test_sigmoid_losses_sum_or_average_over_the_classes(loss, share):
    model = spread_logits(build(loss=loss, label_smoothing=0.1, head_bias_init=-1.5))
    target = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    several, one = random_batch(0, 1, target=target), random_batch(2, 3)
    for batch, wanted in ((several, target), (one, torch.eye(4)[[2, 3]])):
        p = model.model(batch["image"]).sigmoid().double()
        smooth = 0.9 * wanted + 0.1 / 4
        expected = -share * (smooth * p.log() + (1 - smooth) * (1 - p).log()).sum(1).mean()
        assert model.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-5)
        model.val_accuracy.reset()
        model.validation_step(batch, 0)  # against the classes as they are
        expected = -share * (wanted * p.log() + (1 - wanted) * (1 - p).log()).sum(1).mean()
        assert model.val_accuracy.compute()["loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("arch", ["vit_nano1", "coatnet_nano1", "resnet_nano1"])
def test_the_first_sigmoid_loss_is_that_of_the_bias(arch):
    model = build(arch=arch, loss="sigmoid", head_bias_init=-6.9).eval()
    p = 1 / (1 + np.exp(6.9))
    expected = -np.log(p) - 3 * np.log(1 - p)
    assert model.training_step(random_batch(0, 1, 3), 0).item() == pytest.approx(expected, rel=1e-5)


def test_a_bias_that_weights_would_replace_is_refused():
    message = r"model\.head_bias_init=-10\.0 is lost where model\.weights are loaded with their head"
    with pytest.raises(InputError, match=message):
        build(head_bias_init=-10.0, weights="somewhere.pt")
    assert build(head_bias_init=-10.0, weights="somewhere.pt", weights_head="fresh").model.head.bias[0] == -10.0


def test_any_of_several_labels_is_right():
    model = spread_logits(build())
    images = torch.randn(32, 3, 28, 28)
    order = model.model(images).argsort(1, descending=True)
    target = torch.zeros(32, 4)
    target[range(32), order[:, 3]] = 1.0  # the last in rank
    target[range(16), order[:16, 0]] = 1.0  # and, for half of them, the first
    batch = {"image": images, "label": order[:, 3], "target": target, "weight": torch.ones(32)}
    model.validation_step(batch, 0)
    assert model.val_accuracy.compute()["top1_count"] == 16


def test_options_reach_the_network():
    model = build(arch="coatnet_nano1", in_channels=1, model_options={"drop_path_rate": 0.1})
    assert model.model.config.drop_path_rate == 0.1
    assert model.model.config.in_channels == 1
    assert model.family == "coatnet"
    reference = build_model("coatnet_nano1", num_classes=4, image_size=28, in_channels=1)
    assert model.num_params == sum(p.numel() for p in reference.parameters())


def test_a_checkpoint_of_another_plan_is_refused():
    model = build()
    model.trainer.training = True
    with pytest.raises(InputError, match="was made with data plan other, not"):
        model.on_load_checkpoint({"vitlight": {"step": 5, "plan_digest": "other"}})


def test_gradients_stand_only_from_the_first_backward_pass_of_a_step_to_its_end(fit_args, monkeypatch):
    standing, original = [], ImageClassifier.training_step

    def training_step(self, batch, batch_idx):
        standing.append(any(parameter.grad is not None for parameter in self.parameters()))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", training_step)
    assert main([*fit_args, "--trainer.accumulate_grad_batches=2", "--model.duration.samples=48"]) == 0
    assert standing == [False, True] * 3

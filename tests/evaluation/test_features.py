"""Features are what enters the classifier, each image's once, in the order asked for."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.models import small_models
from tests.reference_libraries import reference
from vitlight.data.datamodule import ShardedImages
from vitlight.data.loader import World
from vitlight.evaluation.features import FeatureSet, extract_features, feature_width
from vitlight.evaluation.probe import Computer, FewShotImages
from vitlight.models import build_model
from vitlight.models.heads import classifier_inputs, classifier_layers

MODELS = {
    "class token": lambda: small_models.vit(pool="cls"),
    "gap": lambda: small_models.vit(pool="gap"),
    "map": lambda: small_models.vit(pool="map"),
    "hidden tanh": lambda: small_models.vit(representation_layer=True),
    "coatnet": lambda: small_models.coatnet(),
    "resnet": lambda: small_models.resnet(),
    "bit": lambda: small_models.bit(),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_classifier_makes_the_logits_of_them(name):
    model = MODELS[name]().eval()
    images = torch.randn(3, 3, model.config.image_size, model.config.image_size)
    with torch.no_grad(), classifier_inputs(model) as caught:
        logits = model(images)
        (features,) = caught
        assert features.shape == (3, feature_width(model))
        assert torch.equal(model.head(features), logits)
        assert len(caught) == 2  # that was another pass
    assert not model.head._forward_pre_hooks
    assert torch.equal(model(images), logits)


def test_heads_of_timm_side_by_side_and_as_convolutions():
    reference("timm")
    distilled = build_model("timm:deit_tiny_distilled_patch16_224", 10, 224, options={"depth": 1}).eval()
    assert feature_width(distilled) == 2 * 192
    convolution = build_model("timm:test_efficientnet", 10, 32).eval()
    for model, size in ((distilled, 224), (convolution, 32)):
        with torch.no_grad(), classifier_inputs(model) as caught:
            logits = model(torch.randn(2, 3, size, size))
        assert torch.cat(caught, 1).shape == (2, feature_width(model))
        means = torch.stack([layer(each) for layer, each in zip(classifier_layers(model), caught, strict=True)]).mean(0)
        torch.testing.assert_close(means, logits)


def test_a_compiled_model_gives_its_features_and_stays_compiled():
    model = small_models.vit().eval()
    images = torch.randn(2, 3, 32, 32)
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        calls.append(len(inputs))
        return graph.forward

    model.compile(backend=backend)
    with torch.no_grad():
        logits = model(images)
        assert len(calls) == 1
        with classifier_inputs(model) as caught:
            model(images)
        assert torch.equal(model.head(caught[0]), logits)
        assert torch.equal(model(images), logits)
    assert len(calls) == 1  # nothing was compiled again


class Widths(nn.Module):
    """Takes images for features of 12 numbers, with a layer that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
        self.frozen = nn.Dropout(0.5).eval()
        self.head = nn.Linear(12, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(images.unflatten(3, (2, -1)).unflatten(2, (2, -1)).mean((3, 5)).flatten(1)))


@pytest.fixture
def data(tiny_shards) -> ShardedImages:
    images = ShardedImages(
        str(tiny_shards / "train"),
        num_classes=4,
        image_size=28,
        global_batch_size=8,
        test=str(tiny_shards / "test"),
        val_fraction=0.2,
        num_train_samples=20,
        eval_batch_size=16,
    )
    images.prepare()
    return images


def prepared(batch):
    return batch["image"].float() / 255


def test_each_image_is_read_once_in_the_order_asked_for(data):
    network = Widths().train()
    network.frozen.eval()
    ids = np.random.default_rng(0).permutation(200)[:53]
    values = extract_features(network, data.evaluation_loader("train", ids), 53, prepared)
    assert values.shape == (53, 12)
    assert network.training
    assert network.norm.training
    assert not network.frozen.training
    assert network.norm.num_batches_tracked == 0
    for row in (0, 17, 52):
        batch = next(iter(data.evaluation_loader("train", ids[row : row + 1])))
        pixels = prepared(batch)[:1].double()
        expected = (
            network.eval().double().norm(pixels.unflatten(3, (2, -1)).unflatten(2, (2, -1)).mean((3, 5)).flatten(1))
        )
        torch.testing.assert_close(values[row].double(), expected[0].detach(), rtol=1e-5, atol=1e-6)
        network.float().train()


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_ranks_read_the_batches_of_one_rank_in_turn(data, num_ranks):
    ids = np.arange(7, 200, 3)  # 65 images, five batches
    alone = [prepared(batch) for batch in data.evaluation_loader("train", ids)]
    loaders = [data.evaluation_loader("train", ids, World(rank, num_ranks)) for rank in range(num_ranks)]
    turns = [batch for together in zip(*loaders, strict=True) for batch in together]
    assert len(turns) == -(-5 // num_ranks) * num_ranks
    for batch, expected in zip(turns, alone, strict=False):
        assert torch.equal(prepared(batch), expected)
    assert all(batch["weight"].sum() == 0 for batch in turns[5:])
    assert sum(int(batch["weight"].sum()) for batch in turns) == 65


def test_labels_go_with_the_images_and_subsets_do_not_follow_the_run(data):
    images = FewShotImages.choose(data, (1, 5), num_seeds=3)
    assert images.chosen.shape == (3, 4, 5)
    assert len(np.unique(images.chosen)) > data.plan.num_samples  # the run itself trains on 20
    assert not set(images.ids.tolist()) & set(data.val_ids.tolist())
    assert (images.ids[images.rows] == images.chosen).all()
    train = Computer(Widths(), prepared).features(data, "train", images.ids)
    assert (train.labels.numpy()[images.rows] == np.arange(4)[:, None]).all()
    test = Computer(Widths(), prepared, dtype=torch.float16).features(data, "test", np.arange(61))
    assert test.values.dtype == torch.float16
    assert test.labels.tolist() == data.test_index.label.tolist()


def test_images_without_finite_features_are_counted():
    values = torch.zeros(5, 3)
    values[1, 2], values[3, 0] = torch.inf, torch.nan
    assert FeatureSet(values, torch.zeros(5, dtype=torch.int64)).num_nonfinite == 2

"""Predictions of a trained model for many images, batch by batch, in their order."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from vitlight.data.image_loader import Requests, build_loader
from vitlight.errors import InputError
from vitlight.prediction.images import EvaluationViews, Item, ViewRequest
from vitlight.prediction.rows import Prediction
from vitlight.prediction.sources import ImageSet
from vitlight.training.trained import TrainedModel

__all__ = ["choose_device", "class_probabilities", "predictions"]


def choose_device(name: str) -> torch.device:
    """The device of that name, or with "auto" the accelerator where there is one, else the CPU. Raises InputError for a name
    that is none, or of a device that isn't there."""
    if name == "auto":
        # current_accelerator alone is what torch was built for: cuda also where there is no GPU
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros((), device=device)
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError, ImportError: by backend
        raise InputError(f"--device={name}: {str(error).partition(chr(10))[0]}") from error
    return device


def class_probabilities(logits: Tensor, loss: str) -> Tensor:
    """(B, K), of the classes together, or of each alone where the classifier was trained with a sigmoid loss."""
    return logits.sigmoid() if loss.startswith("sigmoid") else logits.softmax(-1)


def predictions(
    trained: TrainedModel,
    images: ImageSet,
    *,
    top: int,
    wants_all: bool = False,
    batch_size: int,
    num_workers: int = 0,
    device: torch.device,
    num_done: int = 0,
) -> Iterator[list[Prediction]]:
    """The predictions for all images but the first `num_done`, a batch at a time, with the `top` likeliest classes of each
    (of equally likely ones the lower number first) and, with wants_all, the probabilities of all.

    Batches have one size, the last one filled up with black, so that numbers don't depend on how many images there are, nor
    on where an earlier command stopped; only a first batch that is all there is may be smaller.
    """
    network, store = trained.network.to(device), images.open_store()
    first = num_done // batch_size * batch_size
    views = EvaluationViews(trained.image_size, trained.in_channels, trained.crop_fraction, store)
    requests = Requests(0, lambda: _requests(images, batch_size, first))  # how many is not known, and not asked
    already_done = num_done - first
    try:
        for batch in build_loader(views, requests, num_workers, batch_size):
            pixels = batch["image"].to(device, non_blocking=True)
            try:
                with torch.no_grad():
                    logits = network(trained.normalize(pixels))
            except torch.OutOfMemoryError as error:
                raise InputError(f"--batch-size={batch_size} takes more memory than {device} has; lower it") from error
            made = list(_rows(batch["items"], batch["errors"], logits, trained.loss, top, wants_all))
            yield made[already_done:]
            already_done = 0
    finally:
        store.close()


def _requests(images: Iterable[Item], batch_size: int, first: int) -> Iterator[ViewRequest]:
    items = islice(images, first, None)
    is_only = first == 0
    while batch := tuple(islice(items, batch_size)):
        padding = () if is_only else (None,) * (batch_size - len(batch))
        yield ViewRequest((*batch, *padding))
        is_only = False


def _rows(
    items: Iterable[Item | None],
    errors: Iterable[str | None],
    logits: Tensor,
    loss: str,
    top: int,
    wants_all: bool,
) -> Iterator[Prediction]:
    is_finite = logits.isfinite().all(1).tolist()
    probabilities = class_probabilities(logits, loss)
    likeliest = probabilities.sort(dim=1, descending=True, stable=True)
    values, classes = (tensor[:, :top].cpu().numpy() for tensor in likeliest)
    everything = probabilities.cpu().numpy() if wants_all else [None] * len(is_finite)
    for i, (item, error) in enumerate(zip(items, errors, strict=True)):
        if item is None:
            continue
        if error is None and not is_finite[i]:
            error = "the network's logits are not finite"
        if error is not None:
            yield Prediction(item, error=error)
        else:
            yield Prediction(item, classes[i], values[i], everything[i])

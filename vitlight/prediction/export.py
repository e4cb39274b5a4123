"""A trained model as one file for other programs, torch.export's .pt2 or ONNX, checked to give the same logits there."""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitlight.errors import InputError
from vitlight.prediction.images import EvaluationViews, ViewRequest
from vitlight.prediction.sources import ImageSet
from vitlight.training.trained import TrainedModel

__all__ = ["METADATA", "Parity", "check_target", "export_model"]

METADATA = "vitlight.json"  # in a .pt2 an extra file of that name, in ONNX the property "vitlight"

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_RANDOM_BATCHES = (1, 2, 5)
_CHECKED_AT_ONCE = 8

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Parity:
    """Of the exported file, loaded afresh, and the model itself: the largest absolute difference of two logits, the largest
    absolute logit, over how many images of noise and given ones, and in how many of them the likeliest class is another."""

    max_difference: float
    max_logit: float
    num_random: int
    num_given: int
    num_changed: int


class _WithPreprocessing(nn.Module):
    """From pixels to logits; the same as TrainedModel.normalize and its network."""

    scale: Tensor
    shift: Tensor

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (trained.mean, trained.std))
        self.network = trained.network
        self.register_buffer("scale", 1.0 / (255.0 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(pixels.float() * self.scale + self.shift)
        return logits


class _Network(nn.Module):
    """Gives the input its name."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def check_target(target: Path) -> None:
    """InputError for a file that can't be written, is neither .pt2 nor .onnx, or needs a package that is not there."""
    if target.suffix not in (".pt2", ".onnx"):
        raise InputError(f"TARGET={target} ends in {target.suffix!r}; what can be written ends in .pt2 or .onnx")
    if not target.parent.is_dir():
        raise InputError(f"TARGET={target}: there is no folder {target.parent}")
    if target.suffix == ".onnx":
        for name in _ONNX_PACKAGES:
            try:
                import_module(name)
            except ModuleNotFoundError as error:
                raise InputError(f"TARGET={target} needs {name}; pip install 'vitlight[onnx]'") from error


def export_model(
    trained: TrainedModel,
    targets: Sequence[Path],
    *,
    batch_size: int | None = None,
    with_preprocessing: bool = False,
    check_images: ImageSet | None = None,
    tolerance: float = 1e-4,
) -> dict[Path, Parity]:
    """Write `trained`, on the CPU in float32, to .pt2 and .onnx files, and compare the logits of each with the model's own.

    The input is `images`, float32 (B, C, S, S), normalised; with_preprocessing, `pixels`, uint8 of that shape. The output is
    `logits`, float32 (B, K). batch_size: B; None lets it be any. check_images: to compare on, besides noise. In the file is
    what must be known to use it, as JSON (METADATA).

    Raises InputError where the model has no classifier or can't be exported, an image can't be read, or two logits differ by
    more than `tolerance`; then that target is not written, nor are those after it.
    """
    trained.check_classifier()
    name = "pixels" if with_preprocessing else "images"
    batches = list(_batches(trained, batch_size, check_images))
    about = json.dumps(_about(trained, name, batch_size))
    parities = {}
    with _contiguous(trained) as plain:
        expected = [plain.logits(pixels.contiguous()) for pixels, _ in batches]
        module = _WithPreprocessing(plain) if with_preprocessing else _Network(plain.network)
        shape = (batch_size or 2, plain.in_channels, plain.image_size, plain.image_size)
        example = torch.zeros(shape, dtype=torch.uint8 if with_preprocessing else torch.float32)
        program = _traced(module.eval(), example, name, batch_size)
        for target in targets:
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
                beside = Path(folder) / target.name
                write, load = (_write_onnx, _load_onnx) if target.suffix == ".onnx" else (_write_pt2, _load_pt2)
                write(program, beside, about)
                parity = _compare(plain, batches, expected, load(beside), with_preprocessing)
                if not parity.max_difference <= tolerance:
                    raise InputError(
                        f"{target} is not written: its logits differ by up to {parity.max_difference:.1e} from the model's "
                        f"(the largest is {parity.max_logit:.3g}), more than --tolerance={tolerance:g}"
                    )
                for file in sorted(
                    Path(folder).iterdir(), reverse=True
                ):  # weights of above 2 GB have a file of their own
                    file.replace(target.with_name(file.name))
            parities[target] = parity
    return parities


@contextmanager
def _contiguous(trained: TrainedModel) -> Iterator[TrainedModel]:
    """The model with its kernels and images channels first, as other programs have them, and what is exported is compared
    with. With channels last torch 2.13's sums are others: logits of 1.5 of a BiT R50x1 with random weights were 7.6e-5 from
    those in float64 on the CPU, and 8.9e-6 with channels first."""
    trained.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    try:
        yield replace(trained, memory_format=torch.contiguous_format)
    finally:
        trained.network.to(memory_format=trained.memory_format)  # type: ignore[call-overload]


def _traced(module: nn.Module, example: Tensor, name: str, batch_size: int | None) -> "torch.export.ExportedProgram":
    dynamic = {name: {0: torch.export.Dim("batch", min=1)}} if batch_size is None else None
    try:
        with torch.no_grad():
            return torch.export.export(module, (example,), dynamic_shapes=dynamic)
    except Exception as error:  # torch.export has dozens of its own
        raise InputError(f"torch.export can't trace the model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _about(trained: TrainedModel, input_name: str, batch_size: int | None) -> dict[str, Any]:
    size = trained.image_size
    is_normalised = input_name == "images"
    return {
        "arch": trained.arch,
        "model_options": dict(trained.model_options),
        "input": {
            "name": input_name,
            "dtype": "float32" if is_normalised else "uint8",
            "shape": [batch_size or "batch", trained.in_channels, size, size],
            "colours": "RGB" if trained.in_channels == 3 else "luma",
            "normalised": is_normalised,
        },
        "output": {"name": "logits", "shape": [batch_size or "batch", trained.num_classes], "loss": trained.loss},
        "preprocessing": {
            "mean": trained.mean,
            "std": trained.std,
            "resize_shorter_side": int(size / trained.crop_fraction),
            "crop": size,
            "interpolation": "bicubic, antialiased",
        },
        "class_names": trained.class_names,
        "digest": trained.digest,
        "run": None if trained.run is None else trained.run.name,
        "versions": {name: version(name) for name in ("vitlight", "torch")},
    }


def _write_pt2(program: "torch.export.ExportedProgram", path: Path, about: str) -> None:
    torch.export.save(program, path, extra_files={METADATA: about})


def _load_pt2(path: Path) -> Run:
    module = torch.export.load(path).module()
    return torch.no_grad()(module)


def _write_onnx(program: "torch.export.ExportedProgram", path: Path, about: str) -> None:
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it misses torchvision's operators, which no network here has
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own code, and of packages it calls
            made = torch.onnx.export(program, dynamo=True, output_names=["logits"], verbose=False)
    except Exception as error:  # the exporter's, onnxscript's and onnx's own
        raise InputError(f"torch.onnx can't translate the model: {_first_line(error)}") from error
    finally:
        log.setLevel(level)
    assert made is not None
    made.model.metadata_props["vitlight"] = about
    made.save(path)


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    return lambda images: torch.from_numpy(session.run(None, {name: images.contiguous().numpy()})[0])


def _batches(trained: TrainedModel, batch_size: int | None, given: ImageSet | None) -> Iterator[tuple[Tensor, int]]:
    """Batches of uint8 images (B, C, S, S), and how many of each are given ones; the others are noise."""
    generator = torch.Generator().manual_seed(0)
    size = trained.image_size

    def noise(count: int) -> Tensor:
        shape = (count, trained.in_channels, size, size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    for count in _RANDOM_BATCHES if batch_size is None else (batch_size,):
        yield noise(count), 0
    images = list(_given_images(trained, given)) if given is not None else []
    step = batch_size or _CHECKED_AT_ONCE
    for start in range(0, len(images), step):
        part = images[start : start + step]
        padding = [] if batch_size is None else [noise(step - len(part))]
        yield torch.cat([torch.stack(part), *padding]), len(part)


def _given_images(trained: TrainedModel, images: ImageSet) -> Iterator[Tensor]:
    views = EvaluationViews(trained.image_size, trained.in_channels, trained.crop_fraction, images.open_store())
    for item in images:
        batch = views[ViewRequest((item,))]
        if batch["errors"][0] is not None:
            raise InputError(f"--check-images: {item.name or item.shard_name} {batch['errors'][0]}")
        yield batch["image"][0]


def _compare(
    trained: TrainedModel,
    batches: list[tuple[Tensor, int]],
    expected: list[Tensor],
    run: Run,
    with_preprocessing: bool,
) -> Parity:
    plain = [pixels.contiguous() for pixels, _ in batches]
    got = [run(pixels if with_preprocessing else trained.normalize(pixels)) for pixels in plain]
    ours, theirs = torch.cat(expected), torch.cat(got)
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs()
    num_given = sum(count for _, count in batches)
    return Parity(
        max_difference=float(difference.max()),
        max_logit=float(ours.abs().max()),
        num_random=len(ours) - num_given,
        num_given=num_given,
        num_changed=int((ours.argmax(1) != theirs.argmax(1)).sum()),
    )

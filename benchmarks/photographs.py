"""The images that the data-loading benchmark reads: WebDataset shards made from the photographs inside scikit-image.

Each image is a random crop of a random photograph, mirrored half of the time, resized and encoded; the same seed gives the
same bytes with the same Pillow. The folder of a case holds `shard-NNNNNN.tar` (parts `KEY.jpg` or `KEY.png`, and
`KEY.cls`) and `case.json`, which is written last.
"""

import io
import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peers.case import Case
from PIL import Image

SEED = 3
SHARDS = 8
CLASSES = 100
JPEG_QUALITY = 90
# Colour photographs that come inside the package; the others there are drawings, textures, or fetched on demand.
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)


@dataclass(frozen=True)
class Recipe:
    """width, height: of the stored images. grid: photographs side by side in one image, per axis (see `_compose`)."""

    width: int
    height: int
    extension: str
    num_images: int
    output_size: int
    grid: int = 1


RECIPES = {
    "500x375": Recipe(500, 375, "jpg", 2_048, 224),
    "2000x1500": Recipe(2000, 1500, "jpg", 256, 224, grid=4),
    "341x256": Recipe(341, 256, "jpg", 2_048, 224),
    "32x32png": Recipe(32, 32, "png", 8_192, 32),
}


def load_case(name: str, root: Path) -> Case:
    """The case, made first where `root` does not hold it."""
    folder = root / name
    if not (folder / "case.json").is_file():
        if folder.exists():
            shutil.rmtree(folder)
        _write(name, RECIPES[name], folder)
    return Case.read(folder)


def _write(name: str, recipe: Recipe, folder: Path) -> None:
    import skimage

    data = Path(skimage.__file__).parent / "data"
    photographs = [np.asarray(Image.open(data / file).convert("RGB")) for file in PHOTOGRAPHS]
    folder.mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    total_bytes, pixel_sum = 0, np.zeros(3)
    shards = [folder / f"shard-{number:06d}.tar" for number in range(SHARDS)]
    for number, shard in enumerate(shards):
        with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(number, recipe.num_images, SHARDS):
                image = _compose(photographs, recipe, rng)
                pixel_sum += np.asarray(image).mean(axis=(0, 1))
                encoded = io.BytesIO()
                image.save(encoded, {"jpg": "JPEG", "png": "PNG"}[recipe.extension], quality=JPEG_QUALITY)
                total_bytes += encoded.tell()
                _add(tar, f"{i:06d}.{recipe.extension}", encoded.getvalue())
                _add(tar, f"{i:06d}.cls", str(i % CLASSES).encode())
    case = Case(
        name=name,
        folder=str(folder),
        shards=tuple(str(shard) for shard in shards),
        extension=recipe.extension,
        width=recipe.width,
        height=recipe.height,
        num_images=recipe.num_images,
        num_classes=CLASSES,
        output_size=recipe.output_size,
        mean_bytes=total_bytes / recipe.num_images,
        mean_pixel=float(pixel_sum.mean() / recipe.num_images),
    )
    (folder / "case.json").write_text(json.dumps(case.as_dict(), indent=1))


def _compose(photographs: list[np.ndarray], recipe: Recipe, rng: np.random.Generator) -> Image.Image:
    """One crop, or a grid of them: no photograph has 2000 x 1500 pixels, and one enlarged to that would hold so little
    detail that decoding it would be too easy."""
    canvas = Image.new("RGB", (recipe.width, recipe.height))
    width, height = recipe.width // recipe.grid, recipe.height // recipe.grid
    for cell in range(recipe.grid**2):
        row, column = divmod(cell, recipe.grid)
        canvas.paste(
            _crop(photographs[rng.integers(len(photographs))], width, height, rng), (column * width, row * height)
        )
    return canvas


def _crop(photograph: np.ndarray, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A random part of the photograph with the aspect ratio of the result, at least 0.6 of what would fit."""
    rows, columns = photograph.shape[:2]
    scale = rng.uniform(0.6, 1.0) * min(rows / height, columns / width)
    crop_height, crop_width = int(height * scale), int(width * scale)
    top, left = int(rng.integers(rows - crop_height + 1)), int(rng.integers(columns - crop_width + 1))
    part = photograph[top : top + crop_height, left : left + crop_width]
    image = Image.fromarray(np.ascontiguousarray(part[:, ::-1] if rng.random() < 0.5 else part))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))

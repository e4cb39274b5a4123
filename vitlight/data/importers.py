"""Images on disk -> indexed shards: IDX files of the MNIST layout, and folders with one folder a class."""

import gzip
import io
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitlight.data.columns import key_hash
from vitlight.data.decode import DecodeError, decode_image
from vitlight.data.index import ShardIndex
from vitlight.data.shards import SAMPLES_PER_SHARD, Sample, unfinished, write_shards
from vitlight.data.tar import IMAGE_EXTENSIONS
from vitlight.errors import InputError

__all__ = ["pack", "pack_idx", "pack_image_folder", "read_idx"]

_IDX_SPLITS = {"train": ("train",), "test": ("t10k", "test")}
_FOLDER_SPLITS = ("train", "val", "validation", "test")
_UNSIGNED_BYTE = 0x08


def pack(
    source: Path,
    destination: Path,
    *,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    classes: str | None = None,
    overwrite: bool = False,
) -> dict[str, ShardIndex]:
    """Pack whatever `source` holds into one folder of shards a split beneath `destination`; the indexes, by split.

    `source` is a folder of IDX files (`train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` and so on, gzipped or not), of
    class folders, or of `train/` and `val/` or `test/` that hold class folders. `classes` names the classes of IDX files:
    `a,b,c`, or a file with one name a line. Raises InputError for anything else, and for what can't be read or decoded.
    """
    if not source.is_dir():
        raise InputError(f"{source} is not a folder; give the folder of IDX files or of class folders")
    idx = _find_idx(source)
    folders = {name: source / name for name in _FOLDER_SPLITS if (source / name).is_dir()}
    with unfinished(destination, overwrite):
        if idx:
            names = None if classes is None else _class_names(classes)
            return {
                split: pack_idx(
                    images, labels, destination / split, samples_per_shard=samples_per_shard, class_names=names
                )
                for split, (images, labels) in idx.items()
            }
        if classes is not None:
            raise InputError(f"--classes={classes} is for IDX files; {source} has class folders, whose names are used")
        if "train" in folders:
            names = _folder_classes(folders["train"])
            return {
                split: pack_image_folder(
                    folder, destination / split, samples_per_shard=samples_per_shard, class_names=names
                )
                for split, folder in folders.items()
            }
        return {"train": pack_image_folder(source, destination / "train", samples_per_shard=samples_per_shard)}


def _class_names(classes: str) -> list[str]:
    if Path(classes).is_file():
        return Path(classes).read_text().splitlines()
    return [name.strip() for name in classes.split(",")]


def _find_idx(source: Path) -> dict[str, tuple[Path, Path]]:
    """(images, labels) of each split whose IDX files lie in the folder."""
    found = {}
    for split, prefixes in _IDX_SPLITS.items():
        for prefix in prefixes:
            images, labels = (
                sorted(source.glob(f"{prefix}-{kind}[-.]idx{rank}-ubyte*"))
                for kind, rank in (("images", 3), ("labels", 1))
            )
            if bool(images) != bool(labels):
                raise InputError(f"{source}: {(images or labels)[0].name} is there, but not its images or labels")
            if images:
                found[split] = (images[0], labels[0])
    return found


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes (LeCun's MNIST format), gzipped or not."""
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE:
        raise InputError(f"{path} is not an IDX file of unsigned bytes")
    start = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    if len(shape) != content[3] or len(content) - start != int(np.prod(shape)):
        raise InputError(f"{path} has {len(content) - start} bytes of data, its header says {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def pack_idx(
    images: Path,
    labels: Path,
    folder: Path,
    *,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    class_names: Sequence[str] | None = None,
) -> ShardIndex:
    """Grey images (n, H, W) and labels (n,) of two IDX files as lossless PNG shards, in an order drawn by key."""
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or classes.ndim != 1 or len(pixels) != len(classes):
        raise InputError(f"{images} has shape {pixels.shape} and {labels} {classes.shape}; they don't belong together")
    keys = [f"{i:06d}" for i in range(len(pixels))]

    def samples() -> Iterator[Sample]:
        for i in _shuffled(keys):
            buffer = io.BytesIO()
            Image.fromarray(pixels[i]).save(buffer, "png")
            yield Sample(keys[i], buffer.getvalue(), "png", int(classes[i]))

    return write_shards(
        samples(),
        folder,
        samples_per_shard=samples_per_shard,
        class_names=class_names,
        num_samples=len(keys),
        title=f"Packing {folder.name}",
    )


def _shuffled(keys: Sequence[str]) -> list[int]:
    """Positions of the keys in the order of their hashes: the same for the same keys, with no class together."""
    return sorted(range(len(keys)), key=lambda i: (key_hash(keys[i].encode(errors="surrogateescape")), keys[i]))


def _folder_classes(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder} holds neither class folders nor IDX files")
    return names


def _image_paths(folder: Path, numbers: Mapping[str, int]) -> dict[str, tuple[Path, int]]:
    """key -> (file, class) of every image in the folders that `numbers` gives classes; says what else was left out."""
    paths: dict[str, tuple[Path, int]] = {}
    others: Counter[str] = Counter()
    for name, label in numbers.items():
        images = []
        for path in sorted(path for path in (folder / name).rglob("*") if path.is_file()):
            if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS:
                images.append(path)
            else:
                others[path.suffix.lower() or path.name] += 1
        stems = Counter(path.with_suffix("") for path in images)
        for path in images:
            key = path.relative_to(folder).with_suffix("").as_posix()
            if stems[path.with_suffix("")] > 1:  # a.jpg beside a.png
                key += "-" + path.suffix.lstrip(".")
            parent, _, leaf = key.rpartition("/")
            paths[f"{parent}/{leaf.replace('.', '_')}"] = (path, label)
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        print(f"{folder}: {others.total()} files are no images and were left out ({kinds})", file=sys.stderr)
    return paths


def pack_image_folder(
    source: Path,
    folder: Path,
    *,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    class_names: Sequence[str] | None = None,
) -> ShardIndex:
    """Class folders as shards, in an order drawn by key; the files' bytes are kept, each is decoded once to be sure of it.

    `class_names`: the classes in the order of their numbers; by default the names of the folders, sorted. Raises
    InputError for an image that can't be decoded, a folder that is no class, and where there is no image.
    """
    folders = _folder_classes(source)
    names = list(class_names) if class_names is not None else folders
    unknown = sorted(set(folders) - set(names))
    if unknown:
        raise InputError(f"{source / unknown[0]} is not one of the {len(names)} classes of the training images")
    paths = _image_paths(source, {name: label for label, name in enumerate(names) if name in folders})
    if not paths:
        raise InputError(f"{source} holds no image ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    keys = list(paths)

    def samples() -> Iterator[Sample]:
        for i in _shuffled(keys):
            path, label = paths[keys[i]]
            encoded = path.read_bytes()
            try:
                decode_image(encoded)
            except DecodeError as error:
                raise InputError(f"{path} can't be decoded: {error}; mend it or remove it") from error
            yield Sample(keys[i], encoded, path.suffix.lower().lstrip("."), label)

    return write_shards(
        samples(),
        folder,
        samples_per_shard=samples_per_shard,
        class_names=names,
        num_samples=len(keys),
        title=f"Packing {folder.name}",
    )

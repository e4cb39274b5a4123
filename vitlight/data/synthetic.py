"""Unlimited generated images whose accuracy keeps rising with data and with model size: for tests, demos, rehearsals.

An image is a textured ground with coloured discs on it. Some discs, the figure, have one hue in common and stand in one
arrangement; the others, the distractors, have hues of their own. The class is a pair: the family that the ground's texture
comes from, and the family that the figure's arrangement comes from. So local texture alone leaves about
sqrt(num_classes) classes open, and the arrangement alone leaves as many.

A family has many members, drawn with p(m) ~ m^-1.25 for m = 1, 2, ...: a thousand images show the frequent ones, and each
tenfold after that the next stretch of the tail. A law of that form makes error fall as a power of data (Hutter 2021,
arXiv 2102.04074) and of model size (Michaud et al. 2023, arXiv 2303.13506), where a fixed set of prototypes would saturate.

Every draw is a hash of (seed, index, what is drawn), and the arithmetic on it is + - * / sqrt and table look-ups, element
by element: an image is the same to the last bit whatever batch it is made in, on any machine with IEEE numbers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitlight.data.index import ShardIndex
from vitlight.data.plan import hash_words, uniforms
from vitlight.data.shards import SAMPLES_PER_SHARD, Sample, unfinished, write_shards
from vitlight.errors import InputError

__all__ = ["DEFAULT_DIFFICULTY", "TEST_START", "Difficulty", "SyntheticImages", "synth"]

DEFAULT_DIFFICULTY = 0.5  # tuned: docs/synthetic.md has the measurements
TEST_START = 1 << 40  # `synth` draws training images from index 0 on, test images from here on

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]

_TEXTURES, _HUES, _ARRANGEMENTS, _SCENE, _SURFACES, _PIXELS = range(6)  # salts of the independent draws
_TILE_KNOTS = 4  # a texture is a periodic tile, smooth between 4 x 4 random values
_TILE_SIDE = 32  # texels; a power of two
_TILES_ACROSS = 3.2  # periods of a texture over the image's side: 10 pixels each at 32
_NUM_FIGURE_DISCS = 4
_CHUNK_PIXELS = 1 << 16  # 64 images of 32 pixels: what is worked on fits the second-level cache


@dataclass(frozen=True)
class Difficulty:
    """What makes the images hard."""

    noise: float
    """Standard deviation of the pixel noise, in grey levels of 255."""
    num_distractors: int
    """Discs that do not belong to the figure."""
    jitter: float
    """0 to 1: how much position, scale and rotation of figure, discs and textures vary."""
    hue: float
    """0 to 1: how far hues vary, in turns of the colour circle; at 1 they say nothing about the class."""
    num_members: int
    """Textures of a texture family, and arrangements of an arrangement family."""

    @classmethod
    def at(cls, level: float) -> "Difficulty":
        """All knobs turned together, from 0 (easy: one member a family, no distractor) to 1 (hard)."""
        if not 0 <= level <= 1:
            raise InputError(f"difficulty={level}: a number from 0 to 1")
        return cls(
            noise=16 * level,
            num_distractors=round(4 * level),
            jitter=0.05 + 0.3 * level,
            hue=0.8 * level,
            num_members=1 + round(508 * level * level),
        )


class SyntheticImages:
    """The endless set of images that its arguments define; image i is of class i % num_classes."""

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        seed: int = 0,
        difficulty: float | Difficulty = DEFAULT_DIFFICULTY,
    ) -> None:
        if num_classes < 2:
            raise InputError(f"num_classes={num_classes}: at least 2")
        if image_size < 8:
            raise InputError(f"image_size={image_size}: at least 8 pixels")
        self.num_classes, self.image_size, self.seed = num_classes, image_size, seed
        self.difficulty = difficulty if isinstance(difficulty, Difficulty) else Difficulty.at(difficulty)
        self.num_texture_families = math.ceil(math.sqrt(num_classes))
        self.num_arrangement_families = math.ceil(num_classes / self.num_texture_families)

        num_members = self.difficulty.num_members
        ranks = np.arange(1.0, num_members + 1)
        ends = np.cumsum(1 / (ranks * np.sqrt(np.sqrt(ranks))))  # sqrt is exact everywhere, pow is not
        self._member_ends = ends / ends[-1]
        num_textures = self.num_texture_families * num_members
        self._tiles = _tiles(seed, num_textures)
        self._hues = uniforms(2, seed, _HUES, _count(num_textures))
        draws = uniforms(
            2 * _NUM_FIGURE_DISCS, seed, _ARRANGEMENTS, _count(self.num_arrangement_families * num_members)
        )
        self._arrangements = 2 * draws.reshape(-1, _NUM_FIGURE_DISCS, 2) - 1

    def image(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Image (H, W, 3) and class of one index, from 0 to 2^63 - 1."""
        images, labels = self.batch([index])
        return images[0], int(labels[0])

    def batch(self, indices: ArrayLike) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images (N, H, W, 3) and classes (N,) of N indices."""
        rows = np.asarray(indices, np.int64)
        side = self.image_size
        images = np.empty((len(rows), side, side, 3), np.uint8)
        chunk = max(1, _CHUNK_PIXELS // (side * side))
        for begin in range(0, len(rows), chunk):
            images[begin : begin + chunk] = self._paint(rows[begin : begin + chunk])
        return images, rows % self.num_classes

    def _paint(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draws the scene, finds which surface each pixel shows, and gives it that surface's texture and colours.

        N images, D discs of which the first F are the figure, S = D + 1 surfaces of which the last is the ground.
        """
        hard, words, side = self.difficulty, rows.astype(np.uint64), self.image_size
        num_discs = _NUM_FIGURE_DISCS + hard.num_distractors
        scene = uniforms(7, self.seed, _SCENE, words)  # (N, 7)
        draws = uniforms(12, self.seed, _SURFACES, words[:, None], _count(num_discs + 1))  # (N, S, 12)

        classes = rows % self.num_classes
        texture = (draws[..., 0] * len(self._tiles)).astype(np.int32)  # (N, S)
        texture[:, num_discs] = self._member(classes // self.num_arrangement_families, scene[:, 0])
        arrangement = self._member(classes % self.num_arrangement_families, scene[:, 1])
        centres = self._centres(self._arrangements[arrangement], scene, draws[:, :num_discs])

        grid = ((2 * np.arange(side) + 1) / side - 1).astype(np.float32)
        owner = _owners(grid, centres, 0.27 * (1 - 0.4 * hard.jitter * draws[:, :num_discs, 3]))
        owner += (np.arange(len(rows), dtype=np.int32) * (num_discs + 1))[:, None, None]  # rows of (N * S, ...) tables
        shade = self._shade(grid, texture, draws, owner)

        dark, light = self._colours(texture, scene, draws)
        noise = hash_words(hash_words(self.seed, _PIXELS, words)[:, None], _count(side * side))
        noise_bytes = noise.astype("<u8", copy=False).view(np.uint8).reshape(*owner.shape, 8)
        image = np.empty((*owner.shape, 3), np.uint8)
        for channel in range(3):
            value = dark[:, channel][owner] + (light - dark)[:, channel][owner] * shade
            # The sum of two bytes has mean 255 and standard deviation 104.5.
            grain = (
                noise_bytes[..., 2 * channel].astype(np.float32) + noise_bytes[..., 2 * channel + 1] - np.float32(255)
            )
            image[..., channel] = np.clip(value + grain * np.float32(hard.noise / 104.5), 0, 255)
        return image

    def _member(self, family: NDArray[np.int64], draw: Float64) -> NDArray[np.int64]:
        """The row, in a table of all families' members, of the family's member that a draw in [0, 1) stands for."""
        return family * self.difficulty.num_members + np.searchsorted(self._member_ends[:-1], draw, side="right")

    def _centres(self, figure: Float64, scene: Float64, draws: Float64) -> Float64:
        """Centres (N, D, 2) of the discs, the image being [-1, 1]^2: the figure turned, scaled and moved; then the rest."""
        jitter = self.difficulty.jitter
        cos, sin = _rotation(jitter * (scene[:, 2:3] - 0.5))
        scale = 0.75 * (1 - 0.5 * jitter * scene[:, 3:4])
        turned = np.stack(
            [cos * figure[..., 0] - sin * figure[..., 1], sin * figure[..., 0] + cos * figure[..., 1]], -1
        )
        centres = 1.6 * draws[..., 1:3] - 0.8
        own = 0.2 * jitter * (draws[:, :_NUM_FIGURE_DISCS, 1:3] - 0.5)
        centres[:, :_NUM_FIGURE_DISCS] = scale[..., None] * turned + 0.6 * jitter * (scene[:, None, 4:6] - 0.5) + own
        return centres

    def _shade(self, grid: Float32, texture: NDArray[np.int32], draws: Float64, owner: NDArray[np.int32]) -> Float32:
        """Texture value in [0, 1] of each pixel (N, H, W): the tile of its surface, turned, scaled and moved."""
        jitter = self.difficulty.jitter
        cos, sin = _rotation(jitter * (draws[..., 4] - 0.5))
        pitch = 0.5 * _TILES_ACROSS * _TILE_SIDE * (1 + jitter * (draws[..., 5] - 0.5))
        # 8 tiles more than the draw asks for keep the coordinates positive, so that truncation is floor.
        tables = (pitch * cos, pitch * sin, _TILE_SIDE * (draws[..., 6] + 8), _TILE_SIDE * (draws[..., 7] + 8))
        cos_step, sin_step, u, v = (table.astype(np.float32).ravel()[owner] for table in tables)
        x, y = grid[None, None, :], grid[None, :, None]
        column = (cos_step * x - sin_step * y + u).astype(np.int32) & (_TILE_SIDE - 1)
        row = (sin_step * x + cos_step * y + v).astype(np.int32) & (_TILE_SIDE - 1)
        texel = texture.ravel()[owner] * _TILE_SIDE**2 + row * _TILE_SIDE + column
        return self._tiles.ravel()[texel] * np.float32(1 / 255)

    def _colours(self, texture: NDArray[np.int32], scene: Float64, draws: Float64) -> tuple[Float32, Float32]:
        """Colours (N * S, 3), 0 to 255, where a surface's texture is 0 and where it is 1.

        The ground has its texture's two hues, shifted. The discs are bright and nearly plain; the figure's hue is drawn
        for each image, and the distractors' lie evenly between it and itself on the colour circle.
        """
        hard, num_discs = self.difficulty, texture.shape[1] - 1
        hue = self._hues[texture] + hard.hue * (draws[..., 8:10] - 0.5)  # (N, S, 2)
        place = np.maximum(np.arange(num_discs) - _NUM_FIGURE_DISCS + 1, 0) / (hard.num_distractors + 3)
        shift = 0.15 * hard.hue * (draws[:, :num_discs, 8] - 0.5)
        hue[:, :num_discs] = (scene[:, 6, None] + place + shift)[..., None]
        low, high = 0.25 + 0.25 * draws[..., 10], 0.65 + 0.3 * draws[..., 11]
        low[:, :num_discs], high[:, :num_discs] = 0.8 - 0.1 * draws[:, :num_discs, 10], 1.0
        dark, light = _rgb(hue[..., 0], 0.6, low), _rgb(hue[..., 1], 0.45, high)
        return (255 * dark).astype(np.float32).reshape(-1, 3), (255 * light).astype(np.float32).reshape(-1, 3)


def _count(n: int) -> NDArray[np.uint64]:
    return np.arange(n, dtype=np.uint64)


def _rotation(half_tangent: Float64) -> tuple[Float64, Float64]:
    """(cos, sin) of the angle with this tangent of its half: exact everywhere, which the machine's cos is not."""
    square = half_tangent * half_tangent
    return (1 - square) / (1 + square), 2 * half_tangent / (1 + square)


def _rgb(hue: Float64, saturation: float, value: Float64) -> Float64:
    """Colours (..., 3) in [0, 1] from hue in turns."""
    sector = (np.array([5.0, 3.0, 1.0]) + 6 * (hue[..., None] % 1)) % 6
    return value[..., None] * (1 - saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1))


def _tiles(seed: int, num_textures: int) -> NDArray[np.uint8]:
    """Tiles (num_textures, side, side), each from 0 to 255: random knots, smooth and periodic between them."""
    knots = uniforms(_TILE_KNOTS**2, seed, _TEXTURES, _count(num_textures)).reshape(-1, _TILE_KNOTS, _TILE_KNOTS)
    texels_per_knot = _TILE_SIDE // _TILE_KNOTS
    before = np.arange(_TILE_SIDE) // texels_per_knot
    after = (before + 1) % _TILE_KNOTS
    step = (np.arange(_TILE_SIDE) % texels_per_knot + 0.5) / texels_per_knot
    weight = step * step * (3 - 2 * step)
    rows = knots[:, before] * (1 - weight)[:, None] + knots[:, after] * weight[:, None]
    tiles = rows[:, :, before] * (1 - weight) + rows[:, :, after] * weight
    low, high = tiles.min(axis=(1, 2), keepdims=True), tiles.max(axis=(1, 2), keepdims=True)
    return (255 * (tiles - low) / (high - low) + 0.5).astype(np.uint8)


def _owners(grid: Float32, centres: Float64, radii: Float64) -> NDArray[np.int32]:
    """Which disc (N, H, W) each pixel shows: of those over it the one whose centre is nearest in radii; D where none is."""
    scale = 1 / radii[..., None].astype(np.float32)
    dx, dy = (scale * (grid - centres[..., axis, None].astype(np.float32)) for axis in (0, 1))  # (N, D, side)
    dx, dy = dx * dx, dy * dy
    num_images, num_discs, side = dx.shape
    owner = np.full((num_images, side, side), num_discs, np.int32)
    nearest = np.ones((num_images, side, side), np.float32)
    for disc in range(num_discs):
        distance = dy[:, disc, :, None] + dx[:, disc, None, :]
        np.copyto(owner, np.int32(disc), where=distance < nearest)
        np.minimum(nearest, distance, out=nearest)
    return owner


def synth(
    destination: Path,
    *,
    num_train: int = 20_000,
    num_test: int = 2_000,
    image_size: int = 32,
    num_classes: int = 10,
    difficulty: float = DEFAULT_DIFFICULTY,
    seed: int = 0,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    overwrite: bool = False,
) -> dict[str, ShardIndex]:
    """Writes indexed shards of generated images to `destination`/train and /test, as JPEG; the indexes, by split.

    A larger `num_train` adds images to those of a smaller one, and `num_test` does not touch them. Classes are equally
    frequent, up to one image. Raises InputError for numbers out of range and as `write_shards` does.
    """
    for name, count in (("num_train", num_train), ("num_test", num_test)):
        if not num_classes <= count <= TEST_START:
            raise InputError(f"{name}={count}: at least num_classes={num_classes}, at most 2^40")
    images = SyntheticImages(num_classes, image_size, seed, difficulty)
    with unfinished(destination, overwrite):
        return {
            split: write_shards(
                _samples(images, split, start, count),
                destination / split,
                samples_per_shard=samples_per_shard,
                num_samples=count,
                title=f"Generating {split}",
            )
            for split, start, count in (("train", 0, num_train), ("test", TEST_START, num_test))
        }


def _samples(images: SyntheticImages, split: str, start: int, count: int) -> Iterator[Sample]:
    """JPEG of quality 95 with full colour resolution."""
    import simplejpeg

    block = 256
    for begin in range(0, count, block):
        pixels, labels = images.batch(start + np.arange(begin, min(begin + block, count)))
        for i in range(len(pixels)):
            encoded = simplejpeg.encode_jpeg(pixels[i], quality=95, colorspace="RGB", colorsubsampling="444")
            yield Sample(f"{split}-{begin + i:09d}", encoded, "jpg", int(labels[i]))

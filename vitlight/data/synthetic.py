"""Unlimited generated images whose accuracy keeps rising with data and with model size: for tests, demos, rehearsals.

An image shows a handful of soft discs on a textured ground. Some of them, the figure, share one texture and stand in one arrangement;
the others are distractors, each with a texture of its own. The class is a pair (texture family, arrangement family): local
texture alone leaves about sqrt(num_classes) classes open, and so does the arrangement alone, whose discs are known only by
having the same texture.

Each family has many members, drawn with Zipf's law, p(m) ~ 1/(m + 1): the frequent ones are learnt from a thousand images, each
further tenfold adds the next part of the tail. That is what makes accuracy rise steadily in data (Hutter 2021, arXiv 2102.04074) and in
capacity (Michaud et al. 2023, arXiv 2303.13506) where a fixed set of prototypes would saturate.

Every draw is a hash of (seed, index, what is drawn), and the arithmetic is + - * / and table look-ups alone, element by element: so an
image is the same to the last bit whatever the batch it is made in and whatever the machine.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitlight.data.plan import hash_words, uniforms
from vitlight.errors import InputError

__all__ = ["DEFAULT_DIFFICULTY", "Difficulty", "SyntheticImages"]

DEFAULT_DIFFICULTY = 0.5

Floats = NDArray[np.float32]

_TILE_KNOTS = 4
_TILE_SIDE = 32
_CHUNK = 64
_FIGURE, _PLACES, _PIXELS, _TEXTURES, _ARRANGEMENTS = range(5)


@dataclass(frozen=True)
class Difficulty:
    """The knobs that one number from 0 (easy) to 1 (hard) turns."""

    noise: float
    num_distractors: int
    jitter: float
    hue: float
    num_members: int
    num_discs: int = 4

    @classmethod
    def at(cls, level: float) -> "Difficulty":
        return cls(
            noise=16.0 * level,
            num_distractors=round(4 * level),
            jitter=0.5 * level + 0.05,
            hue=level,
            num_members=max(1, round(16.0 ** (2 * level))),
        )


class SyntheticImages:
    def __init__(self, num_classes: int = 10, image_size: int = 32, seed: int = 0, difficulty: float | Difficulty = DEFAULT_DIFFICULTY) -> None:
        self.num_classes, self.image_size, self.seed = num_classes, image_size, seed
        self.knobs = difficulty if isinstance(difficulty, Difficulty) else Difficulty.at(difficulty)
        self.num_textures = math.ceil(math.sqrt(num_classes))
        self.num_arrangements = math.ceil(num_classes / self.num_textures)
        members = self.knobs.num_members
        ranks = np.arange(1.0, members + 1)
        ends = np.cumsum(1 / (ranks * np.sqrt(np.sqrt(ranks))))
        self._member_ends = ends / ends[-1]
        self._tiles = _tiles(seed, self.num_textures * members)
        hues = uniforms(2, seed, _TEXTURES, 1, np.arange(self.num_textures * members, dtype=np.uint64))
        self._hues = hues.astype(np.float32)
        self._places = _places(seed, self.num_arrangements * members, self.knobs.num_discs)

    def image(self, index: int):
        images, labels = self.batch(np.array([index]))
        return images[0], int(labels[0])

    def batch(self, indices):
        indices = np.asarray(indices)
        images = np.empty((len(indices), self.image_size, self.image_size, 3), np.uint8)
        for begin in range(0, len(indices), _CHUNK):
            images[begin : begin + _CHUNK] = self._paint(indices[begin : begin + _CHUNK])
        return images, (indices % self.num_classes).astype(np.int64)

    def _paint(self, indices):
        knobs, side, n = self.knobs, self.image_size, len(indices)
        discs = knobs.num_discs + knobs.num_distractors
        surfaces = discs + 1  # the ground is the last
        labels = indices % self.num_classes
        words = indices.astype(np.uint64)
        u = uniforms(8, self.seed, _FIGURE, words)  # (n, 8)
        members = knobs.num_members
        texture_member = np.searchsorted(self._member_ends[:-1], u[:, 0], side="right")
        arrangement_member = np.searchsorted(self._member_ends[:-1], u[:, 1], side="right")
        texture = labels // self.num_arrangements * members + texture_member
        arrangement = labels % self.num_arrangements * members + arrangement_member
        # every surface: a texture row, its draws
        v = uniforms(12, self.seed, _PLACES, words[:, None], np.arange(surfaces, dtype=np.uint64))  # (n, surfaces, 12)
        texture_of = (v[..., 0] * len(self._tiles)).astype(np.int64)
        texture_of[:, discs] = texture
        # positions
        jitter = knobs.jitter
        turn = _turn(jitter * (u[:, 2] - 0.5))  # (n, 2)
        scale = 0.75 * (1 - 0.5 * jitter * u[:, 3])
        places = self._places[arrangement]  # (n, discs, 2)
        x = scale[:, None] * (places[..., 0] * turn[:, :1] - places[..., 1] * turn[:, 1:]) + jitter * 0.6 * (u[:, 4:5] - 0.5)
        y = scale[:, None] * (places[..., 0] * turn[:, 1:] + places[..., 1] * turn[:, :1]) + jitter * 0.6 * (u[:, 5:6] - 0.5)
        cx = 1.6 * v[..., :discs, 1] - 0.8
        cy = 1.6 * v[..., :discs, 2] - 0.8
        k = knobs.num_discs
        cx[:, :k] = x + 0.2 * jitter * (v[:, :k, 1] - 0.5)
        cy[:, :k] = y + 0.2 * jitter * (v[:, :k, 2] - 0.5)
        radius = 0.27 * (1 - 0.4 * jitter * v[:, :discs, 3])
        grid = ((2 * np.arange(side) + 1) / side - 1).astype(np.float32)
        inverse = (1 / radius).astype(np.float32)
        dx = (grid - cx.astype(np.float32)[..., None]) * inverse[..., None]  # (n, discs, side)
        dy = (grid - cy.astype(np.float32)[..., None]) * inverse[..., None]
        dx *= dx
        dy *= dy
        nearest = np.ones((n, side, side), np.float32)
        owner = np.full((n, side, side), discs, np.int32)
        for j in range(discs):
            d = dy[:, j, :, None] + dx[:, j, None, :]
            closer = d < nearest
            np.copyto(owner, j, where=closer)
            np.minimum(nearest, d, out=nearest)
        owner += (np.arange(n, dtype=np.int32) * surfaces)[:, None, None]
        # texture coordinates
        t = _turn(jitter * (v[..., 4] - 0.5))
        pitch = _TILE_SIDE * 2.0 / 0.62 / 2 * (1 + jitter * (v[..., 5] - 0.5))
        a = (pitch * t[..., 0]).astype(np.float32).ravel()[owner]
        b = (pitch * t[..., 1]).astype(np.float32).ravel()[owner]
        ou = (_TILE_SIDE * (v[..., 6] + 8)).astype(np.float32).ravel()[owner]
        ov = (_TILE_SIDE * (v[..., 7] + 8)).astype(np.float32).ravel()[owner]
        gx, gy = grid[None, None, :], grid[None, :, None]
        tu = (a * gx - b * gy + ou).astype(np.int32) & (_TILE_SIDE - 1)
        tv = (b * gx + a * gy + ov).astype(np.int32) & (_TILE_SIDE - 1)
        flat = texture_of.astype(np.int32).ravel()[owner] * (_TILE_SIDE * _TILE_SIDE) + tv * _TILE_SIDE + tu
        value = self._tiles.ravel()[flat]  # float32 in [0, 1]
        # colours
        hue = self._hues[texture_of] + np.float32(knobs.hue) * (v[..., 8:10] - 0.5)
        third = 1 / (3 + knobs.num_distractors)
        # disc hues: evenly spread; figure first
        own = hue[:, discs:, :1] + u[:, 6, None, None] * 0.0
        place = np.zeros(discs); place[k:] = np.arange(1, discs - k + 1)
        hue[:, :discs, :] = u[:, 6, None, None] + (place * third)[None, :, None] + 0.15 * (v[:, :discs, 8:9] - 0.5) * knobs.hue
        low = 0.25 + 0.25 * v[..., 10]
        high = 0.65 + 0.3 * v[..., 11]
        low[:, :discs] = 0.8 - 0.1 * v[:, :discs, 10]
        high[:, :discs] = 1.0
        dark = _rgb(hue[..., 0], 0.6, low)
        light = _rgb(hue[..., 1], 0.45, high)
        dark = dark.reshape(-1, 3); light = light.reshape(-1, 3)
        base = (255 * dark).astype(np.float32)
        span = (255 * (light - dark)).astype(np.float32)
        noise = hash_words(hash_words(self.seed, _PIXELS, words)[:, None], np.arange(side * side, dtype=np.uint64))
        bytes_ = noise.astype("<u8", copy=False).view(np.uint8).reshape(n, side, side, 8)
        image = np.empty((n, side, side, 3), np.float32)
        for c in range(3):
            channel = base[:, c][owner] + span[:, c][owner] * value
            if knobs.noise:
                channel += (bytes_[..., 2 * c].astype(np.float32) + bytes_[..., 2 * c + 1] - np.float32(255)) * np.float32(knobs.noise / 104.5)
            image[..., c] = channel
        return np.clip(image, 0, 255).astype(np.uint8)


def _turn(half_tangent):
    square = half_tangent * half_tangent
    return np.stack([(1 - square) / (1 + square), 2 * half_tangent / (1 + square)], axis=-1)


def _rgb(hue, saturation, value):
    k = (np.array([5.0, 3.0, 1.0]) + 6 * (hue[..., None] % 1)) % 6
    wave = np.clip(np.minimum(k, 4 - k), 0, 1)
    return value[..., None] * (1 - saturation * wave)


def _tiles(seed, count):
    knots = uniforms(_TILE_KNOTS**2, seed, _TEXTURES, np.arange(count, dtype=np.uint64)).reshape(count, _TILE_KNOTS, _TILE_KNOTS)
    step = _TILE_SIDE // _TILE_KNOTS
    f = (np.arange(_TILE_SIDE) % step + 0.5) / step
    f = f * f * (3 - 2 * f)
    i = np.arange(_TILE_SIDE) // step
    j = (i + 1) % _TILE_KNOTS
    rows = knots[:, i] * (1 - f)[:, None] + knots[:, j] * f[:, None]
    tiles = rows[:, :, i] * (1 - f) + rows[:, :, j] * f
    low = tiles.min(axis=(1, 2), keepdims=True)
    high = tiles.max(axis=(1, 2), keepdims=True)
    return ((tiles - low) / (high - low)).astype(np.float32)


def _places(seed, count, num_discs):
    places = 2 * uniforms(2 * num_discs, seed, _ARRANGEMENTS, np.arange(count, dtype=np.uint64)).reshape(count, num_discs, 2) - 1
    return places

"""Composes scenes: what stands where, in which light, and which instances remain visible.

A scene is a pure function of (seed, split, index, nominal size). There are two families, which
share people and balls: outdoors (sky, buildings, trees, roads, water) and indoors (wall, floor,
doors, paintings).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmlk.data import objects, scenery
from mmlk.data.canvas import Canvas, noise, triangle_wave

VERSION = 2  # of the pictures: raise it when the same seed gives other pixels
SPLITS = ('training', 'validation')
MIN_SIDE = 96
_INDOOR_SHARE = 0.4
_CROWD_PIXELS, _CROWD_SHARE = 30, 0.3


@dataclass(frozen=True)
class Instance:
    """One object as it is seen.

    Attributes:
        category: COCO category name.
        mask: (H, W) bool, visible pixels.
        crowd: Too little of it is visible to be counted; marked ``iscrowd`` in COCO files.
    """

    category: str
    mask: np.ndarray
    crowd: bool


@dataclass(frozen=True)
class Scene:
    """Picture (H, W, 3) uint8 RGB, ADE20K label map (H, W) uint8 and the visible instances."""

    image: np.ndarray
    labels: np.ndarray
    instances: list[Instance]


def make_scene(seed: int, split: str, index: int, height: int, width: int) -> Scene:
    """Generate one scene.

    Args:
        seed: Seed of the whole data set, not negative.
        split: 'training' or 'validation'; the splits share no scene whatever the seed.
        index: Number of the scene within the split, not negative.
        height: Nominal height in pixels; the actual one varies by 12 % and is no multiple of 32.
        width: Nominal width in pixels, likewise.

    Raises:
        ValueError: For an unknown split, a negative number or a side below 96 pixels.
    """
    if split not in SPLITS:
        raise ValueError(f'make_scene: split {split!r} is none of {SPLITS}')
    if seed < 0 or index < 0:
        raise ValueError(f'make_scene: seed {seed} and index {index} must not be negative')
    if min(height, width) < MIN_SIDE:
        raise ValueError(f'make_scene: size {height}x{width} is below {MIN_SIDE} pixels per side')
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), index]))
    canvas = Canvas(_vary(rng, height), _vary(rng, width), rng)
    indoor = rng.random() < _INDOOR_SHARE
    (_indoors if indoor else _outdoors)(canvas)
    return Scene(photograph(canvas, indoor), canvas.label, _visible_instances(canvas))


def _vary(rng: np.random.Generator, nominal: int) -> int:
    """A side near the nominal one that is no multiple of 32."""
    side = int(round(nominal * (0.88 + 0.24 * rng.random())))
    return side + 1 if side % 32 == 0 else side


def _spread(rng: np.random.Generator, count: int, width: float) -> list[float]:
    """``count`` positions across the width, apart from each other, in random order."""
    cells = rng.permutation(count)
    return [width * (cell + 0.15 + 0.7 * rng.random()) / count for cell in cells]


def _outdoors(canvas: Canvas) -> None:
    rng, height = canvas.rng, canvas.height
    horizon = height * (0.34 + 0.16 * rng.random())
    scenery.sky(canvas, horizon)
    if rng.random() < 0.6:
        scenery.mountain(canvas, horizon + 2)
    scenery.grass(canvas, horizon)
    layout = rng.integers(3)
    road, near = None, horizon
    if layout == 0:
        top = horizon + height * 0.06 * rng.random()
        near = top + height * (0.16 + 0.18 * rng.random())
        scenery.water(canvas, horizon, top, near)
    _skyline(canvas, horizon, wooded=layout == 0)
    if layout == 1:
        scenery.road_ahead(canvas, horizon)
    elif layout == 2:
        road = scenery.road_across(canvas, horizon)
    if rng.random() < 0.5:
        size = height * (0.13 + 0.07 * rng.random())
        base = horizon + height * (0.08 + 0.12 * rng.random())
        scenery.fence(canvas, base, size, height * 0.12 * (rng.random() - 0.5))
    if rng.random() < 0.35:
        scenery.wires(canvas, height * (0.03 + 0.12 * rng.random()))
    _street_objects(canvas, horizon, near, road)


def _skyline(canvas: Canvas, horizon: float, wooded: bool) -> None:
    """Buildings and far trees along the horizon."""
    rng, height, width = canvas.rng, canvas.height, canvas.width
    if not wooded and rng.random() < 0.75:
        left = -width * 0.1 * rng.random()
        while left < width:
            right = left + width * (0.2 + 0.24 * rng.random())
            top = horizon - height * (0.16 + 0.28 * rng.random())
            if rng.random() < 0.85:
                scenery.building(canvas, left, right, top, horizon + height * 0.05)
            left = right + width * 0.12 * rng.random()
    for x in _spread(rng, 3, width)[: rng.integers(1, 4)]:
        base = horizon + height * (0.03 + 0.08 * rng.random())
        scenery.tree(canvas, base, x, height * (0.3 + 0.2 * rng.random()))


def _street_objects(canvas: Canvas, horizon: float, near: float, road) -> None:
    """Cars, people, signs, lights, trees and balls from far to near, so that near ones occlude.

    Nothing stands beyond ``near``, which is the shore where there is water.
    """
    rng, height, width = canvas.rng, canvas.height, canvas.width
    queue = []

    def place(paint, count: int, nearest: float, scale: float, vary: float) -> None:
        for x in _spread(rng, max(count, 3), width)[:count]:
            base = near + (0.15 + (nearest - 0.15) * rng.random()) * (height - near)
            depth = (base - horizon) / (height - horizon)
            size = height * scale * (0.4 + 0.9 * depth) * (1 + vary * (rng.random() - 0.5))
            queue.append((base, paint, x, size))

    if road is not None:
        for x in _spread(rng, 3, width)[: rng.integers(1, 4)]:
            base = road[0] + (0.35 + 0.6 * rng.random()) * (road[1] - road[0])
            queue.append((base, objects.car, x, height * (0.18 + 0.06 * rng.random())))
    elif near == horizon:
        place(objects.car, int(rng.integers(1, 3)), 0.9, 0.25, 0.2)
    place(objects.person, int(rng.integers(0, 4)), 0.85, 0.46, 0.15)
    place(objects.ball, int(rng.integers(0, 3)), 0.95, 0.18, 0.3)
    place(objects.stop_sign, int(rng.integers(0, 3)), 0.7, 0.68, 0.2)
    place(scenery.tree, int(rng.integers(0, 2)), 0.5, 0.75, 0.3)
    for x in _spread(rng, 2, width)[: rng.integers(1, 3)]:
        base = near + (0.15 + 0.7 * rng.random()) * (height - near)
        queue.append((base, _streetlight, x, height * (0.034 + 0.014 * rng.random())))
    for base, paint, x, size in sorted(queue, key=lambda entry: entry[0]):
        paint(canvas, base, x, size)


def _streetlight(canvas: Canvas, base: float, x: float, width: float) -> None:
    top = canvas.height * (0.05 + 0.1 * canvas.rng.random())
    scenery.streetlight(canvas, base, x, top, width)


def _indoors(canvas: Canvas) -> None:
    rng, height, width = canvas.rng, canvas.height, canvas.width
    skirting = height * (0.58 + 0.14 * rng.random())
    scenery.room(canvas, skirting)
    places = _spread(rng, 4, width)
    if rng.random() < 0.8:
        scenery.door(canvas, skirting, places.pop(), skirting * (0.72 + 0.12 * rng.random()))
    for _ in range(int(rng.integers(1, 3))):
        side = height * (0.2 + 0.16 * rng.random())
        scenery.painting(
            canvas,
            skirting * (0.3 + 0.15 * rng.random()),
            places.pop(),
            side,
            side * (0.8 + 0.6 * rng.random()),
        )
    queue = []
    for x in _spread(rng, 3, width)[: rng.integers(0, 4)]:
        base = skirting + (0.05 + 0.3 * rng.random()) * (height - skirting)
        queue.append((base, scenery.column, x, height * (0.1 + 0.05 * rng.random())))

    def place(paint, count: int, scale: float, vary: float) -> None:
        for x in _spread(rng, max(count, 3), width)[:count]:
            base = skirting + (0.25 + 0.65 * rng.random()) * (height - skirting)
            queue.append((base, paint, x, height * scale * (1 + vary * (rng.random() - 0.5))))

    place(objects.table, int(rng.integers(1, 3)), 0.35, 0.3)
    place(objects.person, int(rng.integers(0, 3)), 0.55, 0.25)
    place(objects.ball, int(rng.integers(0, 3)), 0.17, 0.4)
    for base, paint, x, size in sorted(queue, key=lambda entry: entry[0]):
        paint(canvas, base, x, size)


def photograph(canvas: Canvas, indoor: bool) -> np.ndarray:
    """Light, slight blur and sensor noise: from painted colours to 8 bits."""
    rng, height, width = canvas.rng, canvas.height, canvas.width
    slope = (rng.random(2, dtype=np.float32) - np.float32(0.5)) * np.float32(0.5)
    light = 1 + slope[0] * (canvas.y / height - 0.5) + slope[1] * (canvas.x / width - 0.5)
    patches = noise(rng, canvas.y / np.float32(0.45 * height), canvas.x / np.float32(0.45 * width))
    light = light * (0.86 + 0.28 * patches)
    if not indoor and rng.random() < 0.4:
        slanted = (canvas.x + canvas.y * np.float32(0.8)) / np.float32(0.9 * width)
        shaded = (triangle_wave(slanted + rng.random()) > 0.7) & (canvas.y > 0.5 * height)
        light = light * np.where(shaded, 0.7, 1)
    gain = 0.78 + 0.4 * rng.random()
    tint = 1 + (rng.random(3, dtype=np.float32) - np.float32(0.5)) * np.float32(0.16)
    image = canvas.image * (light.astype(np.float32)[..., None] * (gain * tint))
    image = np.minimum(image, 255)
    for axis in (0, 1):
        padded = np.pad(image, [(1, 1) if axis == a else (0, 0) for a in range(3)], mode='edge')
        side = padded.shape[axis]
        before, after = (
            np.take(padded, np.arange(start, side - 2 + start), axis=axis) for start in (0, 2)
        )
        image = 0.7 * image + 0.15 * (before + after)
    spread = np.float32(6 + 10 * rng.random())
    grain = rng.random((2, height, width, 3), dtype=np.float32)
    image = image + (grain[0] + grain[1] - 1) * spread
    return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)


def _visible_instances(canvas: Canvas) -> list[Instance]:
    """Instances with at least one visible pixel; those mostly hidden are marked as crowd."""
    instances = []
    for number, (category, painted) in enumerate(zip(canvas.categories, canvas.painted), start=1):
        mask = canvas.instance == number
        seen = int(mask.sum())
        if seen:
            crowd = seen < _CROWD_PIXELS or seen < _CROWD_SHARE * painted
            instances.append(Instance(category, mask, crowd))
    return instances

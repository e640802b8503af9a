"""Pictures of one thing each, for classification, with the brushes of the scenes.

Every thing stands before either background, a field or a room, so that the background tells nothing.
A picture is a pure function of (seed, split, index, nominal size).
"""

from __future__ import annotations

import numpy as np

from mmlk.data import objects, scenery
from mmlk.data.canvas import Canvas
from mmlk.data.scene import SPLITS, photograph

CLASSES = ('ball', 'car', 'door', 'painting', 'person', 'stop_sign', 'table', 'tree')
"""Names of the folders, in the order in which loaders number them."""

# Height of the thing as a share of the picture's; wide things are lower, so that they fit.
_HEIGHTS = dict(ball=0.4, car=0.35, person=0.7, stop_sign=0.7, table=0.38, tree=0.75)
MIN_SIDE = 48


def make_picture(
    seed: int, split: str, index: int, height: int, width: int
) -> tuple[np.ndarray, int]:
    """Generate one picture.

    Args:
        seed: Seed of the whole set, not negative.
        split: 'training' or 'validation'; the splits share no picture whatever the seed.
        index: Number of the picture within the split, not negative; classes take turns.
        height: Nominal height in pixels; the actual one varies by 12 %.
        width: Nominal width in pixels, likewise.

    Returns:
        The picture (H, W, 3), uint8 RGB, and its class, an index of :data:`CLASSES`.

    Raises:
        ValueError: For an unknown split, a negative number or a side below 48 pixels.
    """
    if split not in SPLITS:
        raise ValueError(f'make_picture: split {split!r} is none of {SPLITS}')
    if seed < 0 or index < 0:
        raise ValueError(f'make_picture: seed {seed} and index {index} must not be negative')
    if min(height, width) < MIN_SIDE:
        raise ValueError(f'make_picture: size {height}x{width} is below {MIN_SIDE} pixels per side')
    # A third number keeps the stream apart from that of the scene with the same seed and index.
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), index, 1]))
    height, width = (int(round(n * (0.88 + 0.24 * rng.random()))) for n in (height, width))
    canvas = Canvas(height, width, rng)
    indoor = rng.random() < 0.5
    horizon = height * (0.35 + 0.25 * rng.random())
    if indoor:
        scenery.room(canvas, horizon)
    else:
        scenery.sky(canvas, horizon)
        scenery.grass(canvas, horizon)
    label = index % len(CLASSES)
    _paint(canvas, CLASSES[label])
    return photograph(canvas, indoor), label


def _paint(canvas: Canvas, name: str) -> None:
    rng, height = canvas.rng, canvas.height
    centre = canvas.width * (0.35 + 0.3 * rng.random())
    base = height * (0.82 + 0.16 * rng.random())
    scale = 0.75 + 0.4 * rng.random()
    if name == 'painting':
        tall = height * 0.45 * scale
        scenery.painting(
            canvas, base - 0.55 * height, centre, tall, tall * (0.8 + 0.6 * rng.random())
        )
    elif name == 'door':
        scenery.door(canvas, base, centre, height * 0.75 * scale)
    else:
        brush = scenery.tree if name == 'tree' else getattr(objects, name)
        brush(canvas, base, centre, height * _HEIGHTS[name] * scale)

"""What the scenes are painted on, and the shapes and textures they are painted with.

Arithmetic is restricted to operations that IEEE 754 defines exactly (no sine, no matrix product,
no library rasteriser), so that a seed gives the same picture on every machine.
Coordinates are in pixels, y downwards, pixel centres at halves; colours are RGB in 0..255.
"""

from __future__ import annotations

import numpy as np

Window = tuple[slice, slice]
_PERIOD = 64


class Canvas:
    """A picture with its label map and its instance map, painted back to front.

    Attributes:
        image: (H, W, 3) float32, RGB in 0..255.
        label: (H, W) uint8, ADE20K value of the surface that is seen, 0 = ignored.
        instance: (H, W) int16, 0 = none, i = ``categories[i - 1]``.
        painted: Pixels each instance covered when it was painted; later ones may hide some.
    """

    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        self.height, self.width, self.rng = height, width, rng
        self.y = (np.arange(height, dtype=np.float32) + 0.5)[:, None]
        self.x = (np.arange(width, dtype=np.float32) + 0.5)[None, :]
        self.image = np.zeros((height, width, 3), np.float32)
        self.label = np.zeros((height, width), np.uint8)
        self.instance = np.zeros((height, width), np.int16)
        self.categories: list[str] = []
        self.painted: list[int] = []

    def begin(self, category: str) -> int:
        """Open a new instance; its number goes to :meth:`paint`, then to :meth:`end`."""
        self.categories.append(category)
        return len(self.categories)

    def end(self, instance: int) -> None:
        """Close an instance: remember how many pixels it has before anything covers it."""
        self.painted.append(int((self.instance == instance).sum()))

    def paint(self, shape, colour, label: int, instance: int = 0) -> None:
        """Paint one opaque shape.

        Args:
            shape: (window, mask) as the functions below return it.
            colour: A colour, or an array of colours that broadcasts to the window.
            label: ADE20K value of the surface.
            instance: Number of the instance it belongs to; 0 covers instances.
        """
        window, mask = shape
        region = self.image[window]
        np.copyto(region, np.asarray(colour, np.float32), where=mask[..., None])
        self.label[window][mask] = label
        self.instance[window][mask] = instance

    def shade(self, shape, factor) -> None:
        """Darken or brighten what is painted already; labels stay."""
        window, mask = shape
        self.image[window] *= np.where(mask, np.float32(factor), np.float32(1))[..., None]

    def window(self, top: float, left: float, bottom: float, right: float) -> Window:
        """The part of the canvas that holds a rectangle, possibly empty."""
        y0, y1 = (min(max(int(np.floor(v)), 0), self.height) for v in (top, bottom + 1))
        x0, x1 = (min(max(int(np.floor(v)), 0), self.width) for v in (left, right + 1))
        return slice(y0, y1), slice(x0, x1)

    def grid(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixel centres of a window: (h, 1) and (1, w)."""
        return self.y[window[0]], self.x[:, window[1]]

    def rectangle(self, top: float, left: float, bottom: float, right: float):
        """Upright rectangle."""
        window = self.window(top, left, bottom, right)
        y, x = self.grid(window)
        return window, (y >= top) & (y < bottom) & (x >= left) & (x < right)

    def ellipse(self, cy: float, cx: float, ry: float, rx: float):
        """Upright ellipse with half axes ``ry`` and ``rx``."""
        window = self.window(cy - ry, cx - rx, cy + ry, cx + rx)
        y, x = self.grid(window)
        dy, dx = (y - cy) / ry, (x - cx) / rx
        return window, dy * dy + dx * dx <= 1

    def polygon(self, points):
        """Polygon of (y, x) corners, even-odd rule."""
        points = np.asarray(points, np.float32)
        window = self.window(*points.min(0), *points.max(0))
        y, x = self.grid(window)
        mask = np.zeros((y.shape[0], x.shape[1]), bool)
        for (y0, x0), (y1, x1) in zip(points, np.roll(points, -1, axis=0)):
            if y0 != y1:
                crosses = (y >= min(y0, y1)) & (y < max(y0, y1))
                mask ^= crosses & (x < x0 + (y - y0) * ((x1 - x0) / (y1 - y0)))
        return window, mask

    def stroke(self, y0: float, x0: float, y1: float, x1: float, width: float):
        """Straight bar of the given width between two points."""
        dy, dx = y1 - y0, x1 - x0
        scale = width / 2 / max(np.sqrt(dy * dy + dx * dx), 1e-6)
        ny, nx = -dx * scale, dy * scale
        return self.polygon(
            [(y0 + ny, x0 + nx), (y1 + ny, x1 + nx), (y1 - ny, x1 - nx), (y0 - ny, x0 - nx)]
        )

    def below(self, line: np.ndarray):
        """Everything below a line given as one height per column."""
        return self.window(0, 0, self.height, self.width), self.y >= line[None, :]


def triangle_wave(t: np.ndarray) -> np.ndarray:
    """Periodic zigzag of period 1 in 0..1."""
    return np.abs(2 * (t - np.floor(t + np.float32(0.5))))


def noise(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Smooth random field in 0..1 with features of size 1 in (u, v); arguments broadcast."""
    lattice = rng.random((_PERIOD, _PERIOD), dtype=np.float32)
    u, v = (np.asarray(t, np.float32) for t in (u, v))
    iu, iv = np.floor(u), np.floor(v)
    fu, fv = u - iu, v - iv
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    iu, iv = iu.astype(np.int64) % _PERIOD, iv.astype(np.int64) % _PERIOD
    ju, jv = (iu + 1) % _PERIOD, (iv + 1) % _PERIOD
    near = lattice[iu, iv] * (1 - fv) + lattice[iu, jv] * fv
    far = lattice[ju, iv] * (1 - fv) + lattice[ju, jv] * fv
    return near * (1 - fu) + far * fu


def fractal(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Two octaves of :func:`noise`, in 0..1."""
    return (2 * noise(rng, u, v) + noise(rng, u * np.float32(2.3), v * np.float32(2.3))) / 3


def tone(base, field: np.ndarray, low: float, high: float) -> np.ndarray:
    """A colour scaled by a field in 0..1: (h, w, 3), factor ``low`` at 0 and ``high`` at 1."""
    scale = low + (high - low) * np.asarray(field, np.float32)
    return scale[..., None] * np.asarray(base, np.float32)


def pick(rng: np.random.Generator, palette, spread: float = 14) -> np.ndarray:
    """A colour of a palette, moved at random by at most ``spread`` per channel."""
    base = np.asarray(palette[rng.integers(len(palette))], np.float32)
    return base + (rng.random(3, dtype=np.float32) - np.float32(0.5)) * np.float32(2 * spread)

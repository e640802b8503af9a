"""Binary masks as COCO files store them: polygons along the pixel edges, or run lengths."""

from __future__ import annotations

import numpy as np


def run_lengths(mask: np.ndarray) -> dict:
    """Uncompressed COCO run-length code of a (H, W) bool mask: columns first, zeros first."""
    flat = np.concatenate([[False], mask.ravel(order='F'), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    bounds = np.concatenate([[0], changes, [mask.size]])
    counts = np.diff(bounds)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return dict(size=list(mask.shape), counts=counts.tolist())


def polygons(mask: np.ndarray) -> list[list[float]] | None:
    """Outlines of a (H, W) bool mask as COCO polygons ``[x, y, x, y, ...]``.

    The outlines run along pixel edges, one per 4-connected part, so that rasterising them returns
    the mask.

    Returns:
        The outlines, or None where the mask has a hole, which COCO polygons cannot say.
    """
    edges = _boundary_edges(mask)
    outlines = []
    while edges:
        outline = _take_loop(edges)
        if _signed_area(outline) < 0:
            return None
        corners = _corners(outline)
        outlines.append([float(value) for y, x in corners for value in (x, y)])
    return outlines


def bounding_box(mask: np.ndarray) -> list[float]:
    """COCO box ``[x, y, width, height]`` of a mask that is not empty, in pixel edges."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return [float(left), float(top), float(columns[-1] + 1 - left), float(rows[-1] + 1 - top)]


def _boundary_edges(mask: np.ndarray) -> dict:
    """Unit edges between mask and background, start -> ends, with the mask to their right."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    edges: dict = {}
    sides = (
        (padded[:-2, 1:-1], (0, 0), (0, 1)),
        (padded[1:-1, 2:], (0, 1), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (1, 0)),
        (padded[1:-1, :-2], (1, 0), (0, 0)),
    )
    for neighbour, start, end in sides:
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            edges.setdefault((y + start[0], x + start[1]), []).append((y + end[0], x + end[1]))
    return edges


def _take_loop(edges: dict) -> list[tuple[int, int]]:
    """Remove one closed loop from the edges; where two meet, turn right, towards the mask."""
    first = next(iter(edges))
    loop, point, heading = [], first, None
    while True:
        ends = edges[point]
        right = heading and (point[0] + heading[1], point[1] - heading[0])
        end = right if right in ends else ends[0]
        ends.remove(end)
        if not ends:
            del edges[point]
        loop.append(point)
        heading, point = (end[0] - point[0], end[1] - point[1]), end
        if point == first:
            return loop


def _signed_area(loop: list[tuple[int, int]]) -> float:
    """Positive for outer outlines, negative for holes."""
    return sum(x0 * y1 - x1 * y0 for (y0, x0), (y1, x1) in zip(loop, loop[1:] + loop[:1])) / 2


def _corners(loop: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The points where the outline turns."""
    return [
        point
        for before, point, after in zip(loop[-1:] + loop[:-1], loop, loop[1:] + loop[:1])
        if before[0] + after[0] != 2 * point[0] or before[1] + after[1] != 2 * point[1]
    ]

"""Suppression of boxes and RoIAlign in NumPy, written from their definitions.

Both poolings of RoIAlign's axes are linear and independent of each other, so that a region's result
is ``rows @ map @ columns.T`` with one small matrix per axis, and its gradient the transposed product.
"""

from __future__ import annotations

import numpy as np


def overlaps(box: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    """IoU of one box with others in float32; two boxes without area give NaN."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    shared = np.maximum(high - low + np.float32(offset), 0).prod(axis=1)
    area, areas = (
        (b[..., 2:] - b[..., :2] + np.float32(offset)).prod(axis=-1) for b in (box, others)
    )
    with np.errstate(invalid='ignore'):
        return shared / (area + areas - shared)


def nms(boxes: np.ndarray, order: np.ndarray, threshold: float, offset: int = 0) -> list[int]:
    """Indices of the boxes that are kept, of boxes that come in the ``order`` of their scores."""
    kept = []
    for i in order:
        if not (overlaps(boxes[i], boxes[kept], offset) > np.float32(threshold)).any():
            kept.append(int(i))
    return kept


def soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    sigma: float,
    min_score: float,
    method: str,
    offset: int,
) -> tuple[np.ndarray, list[int]]:
    """Lowered scores and indices in the order taken.

    The list is handled as MMCV does it, one box at a time: the best is exchanged with the one at its
    place, and a box that leaves is replaced by the last.
    """
    left = [(np.float32(score), i) for i, score in enumerate(scores)]
    place = 0
    while place < len(left):
        best = place
        for i in range(place, len(left)):
            if left[i][0] > left[best][0]:
                best = i
        left[place], left[best] = left[best], left[place]
        i = place + 1
        while i < len(left):
            score, index = left[i]
            overlap = overlaps(boxes[left[place][1]], boxes[index][None], offset)[0]
            weight = np.float32(1)
            if method == 'gaussian':
                weight = np.exp(-(overlap * overlap) / np.float32(sigma))
            elif overlap >= np.float32(threshold):
                weight = np.float32(0) if method == 'naive' else 1 - overlap
            left[i] = (score * weight, index)
            if left[i][0] < np.float32(min_score):
                left[i] = left[-1]
                left.pop()
            else:
                i += 1
        place += 1
    return np.array([score for score, _ in left]), [index for _, index in left]


def roi_align(
    features: np.ndarray,
    rois: np.ndarray,
    bins: tuple[int, int],
    scale: float,
    samples: int,
    aligned: bool,
) -> tuple[np.ndarray, list[tuple[int, np.ndarray, np.ndarray]]]:
    """Result (K, C, *bins) in float64, and (image, rows, columns) of each region."""
    corners = rois[:, 1:] * np.float32(scale) - np.float32(0.5 if aligned else 0)
    parts = []
    for image, (left, top, right, bottom) in zip(rois[:, 0].astype(int), corners, strict=True):
        rows = _averages(top, bottom, bins[0], features.shape[2], samples, aligned)
        columns = _averages(left, right, bins[1], features.shape[3], samples, aligned)
        parts.append((image, rows, columns))
    result = [rows @ features[image] @ columns.T for image, rows, columns in parts]
    return np.array(result).reshape(len(rois), features.shape[1], *bins), parts


def roi_align_gradient(shape: tuple, parts: list, gradient: np.ndarray) -> np.ndarray:
    """Gradient of the map of ``shape`` from that of the result."""
    total = np.zeros(shape)
    for (image, rows, columns), pooled in zip(parts, gradient, strict=True):
        total[image] += rows.T @ pooled @ columns
    return total


def _averages(
    low: np.float32, high: np.float32, bins: int, size: int, samples: int, aligned: bool
) -> np.ndarray:
    """(bins, size): weight of each pixel of an axis in each bin's average of linear samples.

    Places are float32, as an operator's are: a sample at the border counts or does not.
    """
    length = high - low if aligned else max(high - low, np.float32(1))
    step = length / np.float32(bins)
    count = samples or int(np.ceil(step))
    weights = np.zeros((bins, size))
    for i in range(bins):
        for j in range(count):
            place = low + np.float32(i) * step + np.float32(j + 0.5) * step / np.float32(count)
            if -1 <= place <= size:
                place = min(max(float(place), 0), size - 1)
                pixel = min(int(place), size - 2) if size > 1 else 0
                weights[i, pixel] += (1 - (place - pixel)) / count
                if size > 1:
                    weights[i, pixel + 1] += (place - pixel) / count
    return weights

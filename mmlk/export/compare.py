"""How far a file's outputs may be from those of the network that it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

# Folding and the exporter's decompositions reorder float32 sums; relative to the largest output.
TOLERANCE = 1e-4
# Share of the labels that may change, where two classes are equally likely, and of the boxes that may
# have no counterpart, where suppression or a limit decides between two that are equally good.
DISAGREEMENT = 1e-3
LOST_BOXES = 0.02

Outputs = Sequence[torch.Tensor]


def maps(found: Outputs, expected: Outputs, out: Path) -> float:
    """Largest deviation of outputs, relative to the largest value; of labels the share that differs.

    Args:
        found: Of the file ``out``.
        expected: Of the network.
        out: Named in errors.

    Raises:
        RuntimeError: If it is too large, or a shape differs.
    """
    worst = 0.0
    for got, want in zip(found, expected, strict=True):
        if got.shape != want.shape:
            raise RuntimeError(
                f'export: an output of {out} has shape {tuple(got.shape)}, not {tuple(want.shape)}'
            )
        if want.is_floating_point():
            error = _relative(got, want)
            bound, kind = TOLERANCE, 'of the largest value'
        else:
            error = (got != want).float().mean().item()
            bound, kind = DISAGREEMENT, 'of the labels'
        if not error <= bound:
            raise RuntimeError(
                f'export: outputs of {out} for an image of {tuple(want.shape)} differ by '
                f'{error:.3g} {kind}, more than {bound:g}; nothing was written'
            )
        worst = max(worst, error)
    return worst


def detections(found: Outputs, expected: Outputs, out: Path) -> float:
    """Largest deviation of boxes, scores and masks, relative to the largest coordinate or value.

    Boxes are compared with their counterpart, the nearest of the same label, in whatever order.

    Args:
        found: Boxes (n, 4), scores (n,), labels (n,) and perhaps masks (n, h, w) of the file ``out``.
        expected: Of the network.
        out: Named in errors.

    Raises:
        RuntimeError: If more than ``LOST_BOXES`` on either side have no counterpart.
    """
    if not len(found[0]) and not len(expected[0]):
        return 0.0
    (boxes, scores, labels, *_), (others, other_scores, other_labels, *_) = found, expected
    far = (boxes[:, None] - others).abs().amax(2) / torch.cat([boxes, others]).abs().max()
    between = (scores[:, None] - other_scores).abs() / torch.cat([scores, other_scores]).max()
    far = torch.maximum(far, between)
    far = torch.where(labels[:, None] == other_labels, far, torch.inf)
    same = far <= TOLERANCE
    lost = (~same.any(0)).sum().item() + (~same.any(1)).sum().item()
    if lost > LOST_BOXES * (len(boxes) + len(others)):
        raise RuntimeError(
            f'export: of {len(boxes)} boxes of {out} and {len(others)} of the network, {lost} have no '
            f'counterpart of the same label, place and score; nothing was written'
        )
    nearest = far.argmin(1)
    rows = same.any(1)
    pairs = ((got[rows], want[nearest[rows]]) for got, want in zip(found[3:], expected[3:]))
    return max(far[rows].amin(1).max().item(), maps(*zip(*pairs), out) if found[3:] else 0.0)


def _relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max().clamp(min=1e-6)).item()

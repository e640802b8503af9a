"""Which values a label map may hold: they follow from data set, loader and heads.

MMSegmentation's ``LoadAnnotations`` casts to 8 bits, moves 0 to 255 and the others down by one
where ``reduce_zero_label`` is set, then renumbers by ``label_map`` where the config picks classes of
the data set. What is left must be a class that every head has, or the ``ignore_index``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmlk.data.files import first_line

_IGNORED_BY_LOADER = 255


class LabelFinding(NamedTuple):
    """What a label map shows.

    Attributes:
        problem: What is wrong with it, or None.
        ignored: Whether not one pixel is to be learnt from.
    """

    problem: str | None
    ignored: bool = False


@dataclass(frozen=True)
class LabelRule:
    """How labels are read and which are allowed.

    Attributes:
        num_classes: Number of classes that every head has; None where it is not known, which
            allows every 8-bit value.
        ignore_index: Label that the losses leave out.
        reduce_zero_label: Whether the loader ignores 0 and moves the others down by one.
        label_map: Renumbering of the loader after that, old to new, or None.
    """

    num_classes: int | None = None
    ignore_index: int | None = 255
    reduce_zero_label: bool = False
    label_map: Mapping[int, int] | None = None

    def loaded(self) -> np.ndarray:
        """(256,) int: the label that each value of a file becomes."""
        labels = np.arange(256)
        if self.reduce_zero_label:
            labels = labels - 1
            labels[[0, 255]] = _IGNORED_BY_LOADER
        if self.label_map:
            labels = np.array([self.label_map.get(int(label), int(label)) for label in labels])
        return labels

    def ignored(self) -> np.ndarray:
        """(256,) bool: whether a value of a file is left out of the loss."""
        labels = self.loaded()
        return np.zeros(256, bool) if self.ignore_index is None else labels == self.ignore_index

    def allowed(self) -> np.ndarray:
        """(256,) bool: whether a label map may hold a value."""
        if self.num_classes is None:
            return np.ones(256, bool)
        return self.ignored() | (self.loaded() < self.num_classes)

    def spelt(self) -> str:
        """The allowed values in words, such as '0 (ignored), 1..150 and 255 (ignored)'."""
        ignored, allowed = self.ignored(), self.allowed()
        spans: list[list[int]] = []
        for value in np.flatnonzero(allowed).tolist():
            if spans and spans[-1][1] == value - 1 and ignored[value] == ignored[value - 1]:
                spans[-1][1] = value
            else:
                spans.append([value, value])
        texts = [
            (f'{first}' if first == last else f'{first}..{last}')
            + (' (ignored)' if ignored[first] else '')
            for first, last in spans
        ]
        return ' and '.join(filter(None, (', '.join(texts[:-1]), texts[-1])))


def look_at_labels(
    content: bytes, rule: LabelRule, size: tuple[int, int] | None = None
) -> LabelFinding:
    """Examine a label map.

    Args:
        content: The file, a picture of one channel.
        rule: What its values mean.
        size: (height, width) of the image that the labels belong to, if known.
    """
    if not content:
        return LabelFinding('the file is empty')
    try:
        with Image.open(io.BytesIO(content)) as picture:
            labels = np.asarray(picture)
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error
        return LabelFinding(f'cannot be decoded as a label map ({first_line(error)})')
    if labels.ndim != 2:
        return LabelFinding(
            f'has {labels.shape[2]} channels where a label map has one; the full ADE20K data set '
            'stores its labels like this, the 2016 challenge release (ADEChallengeData2016) does '
            'not'
        )
    bad = _not_allowed(labels, rule)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        return LabelFinding(
            f'holds the label value {labels[row, column]} at row {row}, column {column} '
            f'({int(bad.sum())} such pixel(s)); allowed are {rule.spelt()}'
        )
    if size is not None and labels.shape != tuple(size):
        return LabelFinding(
            f'is {labels.shape[0]}x{labels.shape[1]} (height x width) while its image is '
            f'{size[0]}x{size[1]}'
        )
    return LabelFinding(None, bool(rule.ignored()[labels.astype(np.uint8)].all()))


def _not_allowed(labels: np.ndarray, rule: LabelRule) -> np.ndarray:
    """Where a label map holds what no class has, or what 8 bits cannot hold."""
    if labels.dtype in (np.uint8, np.bool_):
        return ~rule.allowed()[labels.astype(np.uint8)]
    narrow = labels.astype(np.uint8)
    return (narrow != labels) | ~rule.allowed()[narrow]

"""What MMDetection makes of the ``segmentation`` of one COCO annotation."""

from __future__ import annotations

import math
from enum import Enum


class Mask(Enum):
    """What becomes of a mask that does not stop the loader."""

    USED = 'used'
    ABSENT = 'absent'
    IGNORED = 'ignored'  # no polygon of three points: the loader marks the object as to be ignored


def is_numbers(values: object) -> bool:
    """Whether a JSON value is a list of finite numbers."""
    return isinstance(values, list) and all(map(is_number, values))


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def judge_mask(mask: object, height: int, width: int) -> Mask | str:
    """What the loader makes of a mask, or what is wrong with it.

    Args:
        mask: Polygons ([[x, y, x, y, ...], ...]) or run lengths (dict), as the file has them.
        height: Height of the image, pixels.
        width: Width of the image, pixels.
    """
    if not mask:
        return Mask.ABSENT
    if isinstance(mask, dict):
        return _judge_run_lengths(mask, height, width)
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        return 'its mask is neither polygons nor run lengths'
    if not all(map(is_numbers, mask)):
        return 'its mask has a coordinate that is no finite number'
    corners = [polygon for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0]
    if not corners:
        return Mask.IGNORED
    xs, ys = ([value for polygon in corners for value in polygon[axis::2]] for axis in (0, 1))
    if min(xs) >= width or min(ys) >= height or max(xs) <= 0 or max(ys) <= 0:
        return (
            f'its mask (x {min(xs):g}..{max(xs):g}, y {min(ys):g}..{max(ys):g}) lies outside its '
            f'image of {height}x{width} (height x width)'
        )
    return Mask.USED


def _judge_run_lengths(mask: dict, height: int, width: int) -> Mask | str:
    size, counts = mask.get('size'), mask.get('counts')
    if size is None or not isinstance(counts, (list, str)):
        return Mask.IGNORED
    if size != [height, width]:
        return f'its mask is made for size {size}, its image has {[height, width]} (height, width)'
    if isinstance(counts, list):
        covered = sum(counts) if is_numbers(counts) else None
    else:
        covered = sum(decoded_counts(counts))
    if covered != height * width:
        return f'its run lengths cover {covered} pixels, its image has {height * width}'
    return Mask.USED


def decoded_counts(text: str) -> list[int]:
    """Run lengths from COCO's compressed string: 5 bits a character, from the fourth on the
    difference to the last but one."""
    counts, value, shift = [], 0, 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    return counts

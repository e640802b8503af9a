"""Checks of a COCO instance annotation file before training.

Loaders skip what they do not understand (unknown categories, objects outside the image) and fail in
the middle of an epoch over what they cannot decode. Here everything is looked at once, beforehand:
what would fail or be dropped in silence is refused, what is harmless is counted and reported.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmlk.data.classes import COCO

_SHOWN = 5
_KEYS = {
    'images': ('id', 'file_name', 'height', 'width'),
    'categories': ('id', 'name'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
}


class DataError(RuntimeError):
    """A data set that cannot be trained on; its message is for the user, without traceback."""


def check_coco_file(
    path: Path, images: Path, classes: Sequence[str] | None = None, require_objects: bool = True
) -> list[str]:
    """Check an annotation file and the presence of its images.

    Args:
        path: The JSON file.
        images: Folder of the images.
        classes: Category names that the data set uses; COCO's 80 by default.
        require_objects: Refuse a file without a single annotation.

    Returns:
        Lines to log: what the file holds, and how much of it is unusual but harmless.

    Raises:
        DataError: If the file is truncated or no COCO file; has no image or no annotation; refers
            to images or categories it does not define; holds masks that do not fit their image or
            cannot be decoded; or names images that are not in the folder.
    """
    content = _read(path)
    _refuse(path, _structural_problems(content))
    if not content['images']:
        raise DataError(f'{path}: the file lists no image')
    if require_objects and not content['annotations']:
        raise DataError(f'{path}: the file has no annotation, so there is nothing to learn from')
    known = set(classes or COCO)
    if not any(category['name'] in known for category in content['categories']):
        raise DataError(
            f'{path}: none of its categories ({_listed(c["name"] for c in content["categories"])}) '
            f'is among the classes of the data set ({_listed(sorted(known))})'
        )
    present = set(os.listdir(images)) if images.is_dir() else set()
    by_id = {image['id']: image for image in content['images']}
    _refuse(path, _image_problems(content['images'], images, present))
    _refuse(path, _annotation_problems(content, by_id))
    return _summary(path, content, by_id)


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise DataError(f'{path}: no JSON text ({error})') from None
    except json.JSONDecodeError as error:
        size = path.stat().st_size
        raise DataError(
            f'{path}: broken JSON at character {error.pos} of a file of {size} bytes '
            f'({error.msg}); it is probably truncated: download or copy it again'
        ) from None
    if not isinstance(content, dict):
        raise DataError(f'{path}: no COCO file, its top level is a {type(content).__name__}')
    missing = [key for key in _KEYS if not isinstance(content.get(key), list)]
    if missing:
        raise DataError(
            f'{path}: no COCO instance file, the list(s) {", ".join(missing)} are missing'
        )
    return content


def _refuse(path: Path, problems: Iterator[str]) -> None:
    found = list(problems)
    if found:
        more = f'\n    ... and {len(found) - _SHOWN} more' if len(found) > _SHOWN else ''
        raise DataError(
            f'{path}: {len(found)} problem(s)\n    ' + '\n    '.join(found[:_SHOWN]) + more
        )


def _structural_problems(content: dict) -> Iterator[str]:
    for section, keys in _KEYS.items():
        for number, entry in enumerate(content[section]):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                yield f'{section}[{number}] has no {", ".join(missing)}'
        seen = Counter(
            entry['id'] for entry in content[section] if isinstance(entry, dict) and 'id' in entry
        )
        for identity, count in seen.items():
            if count > 1:
                yield f'id {identity} appears {count} times in {section}'


def _image_problems(entries: list[dict], folder: Path, present: set[str]) -> Iterator[str]:
    for image in entries:
        name = image['file_name']
        if name not in present and not (folder / name).is_file():
            yield f'image {image["id"]}: no file {folder / name}'


def _annotation_problems(content: dict, images: dict) -> Iterator[str]:
    categories = {category['id'] for category in content['categories']}
    for annotation in content['annotations']:
        where = f'annotation {annotation["id"]}'
        image = images.get(annotation['image_id'])
        if annotation['category_id'] not in categories:
            yield f'{where}: unknown category id {annotation["category_id"]}'
        if image is None:
            yield f'{where}: unknown image id {annotation["image_id"]}'
            continue
        if not _is_numbers(annotation['bbox']) or len(annotation['bbox']) != 4:
            yield f'{where}: bbox {annotation["bbox"]!r} is not [x, y, width, height]'
            continue
        problem = _mask_problem(annotation.get('segmentation'), image['height'], image['width'])
        if problem:
            yield f'{where} (image {image["file_name"]}): {problem}'


def _mask_problem(mask, height: int, width: int) -> str | None:
    """What is wrong with a mask, given the size of its image; no mask at all is harmless."""
    if not mask:
        return None
    if isinstance(mask, dict):
        return _run_length_problem(mask, height, width)
    if not isinstance(mask, list) or not all(map(_is_numbers, mask)):
        return 'its mask is neither polygons nor run lengths'
    corners = [polygon for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0]
    xs, ys = ([value for polygon in corners for value in polygon[axis::2]] for axis in (0, 1))
    if corners and (min(xs) >= width or min(ys) >= height or max(xs) <= 0 or max(ys) <= 0):
        return (
            f'its mask (x {min(xs):g}..{max(xs):g}, y {min(ys):g}..{max(ys):g}) lies outside its '
            f'image of {height}x{width} (height x width)'
        )
    return None


def _run_length_problem(mask: dict, height: int, width: int) -> str | None:
    size, counts = mask.get('size'), mask.get('counts')
    if size is None or counts is None or list(size) != [height, width]:
        return f'its mask is made for size {size}, its image has {[height, width]} (height, width)'
    if isinstance(counts, list):
        covered = sum(counts) if _is_numbers(counts) else None
    else:
        covered = sum(_decoded_counts(counts))
    if covered != height * width:
        return f'its run lengths cover {covered} pixels, its image has {height * width}'
    return None


def _decoded_counts(text: str) -> list[int]:
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


def _summary(path: Path, content: dict, images: dict) -> list[str]:
    """What the file holds and what of it the loaders will skip or cut, in counts."""
    annotations = content['annotations']
    bare = len(images) - len({annotation['image_id'] for annotation in annotations})
    lines = [
        f'{len(images)} images, {len(annotations)} annotations in {path}'
        + (f'; {bare} images have no object' if bare else '')
    ]
    outside = sum(
        _leaves_image(annotation['bbox'], images[annotation['image_id']])
        for annotation in annotations
    )
    if outside:
        lines.append(f'warning: {outside} boxes in {path} reach beyond their image; they are cut')
    void = sum(
        min(annotation['bbox'][2:]) < 1 or annotation['area'] <= 0 for annotation in annotations
    )
    if void:
        lines.append(f'warning: {void} annotations in {path} are below one pixel; they are skipped')
    return lines


def _leaves_image(box: list[float], image: dict) -> bool:
    x, y, width, height = box
    return x < -1 or y < -1 or x + width > image['width'] + 1 or y + height > image['height'] + 1


def _is_numbers(values) -> bool:
    return isinstance(values, list) and all(isinstance(value, (int, float)) for value in values)


def _listed(names) -> str:
    names = list(names)
    return ', '.join(map(repr, names[:_SHOWN])) + (', ...' if len(names) > _SHOWN else '')

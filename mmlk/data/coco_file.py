"""Checks of a COCO instance annotation file before training.

They follow MMDetection's ``CocoDataset``: which annotations it skips, which images it leaves out,
which number it gives to a category. What it would fail on in the middle of an epoch, or drop in
silence although somebody meant it, is refused; what is harmless is counted and reported.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from mmlk.data.classes import COCO
from mmlk.data.coco_masks import is_number
from mmlk.data.coco_objects import Tally, judge_annotations, nothing_kept
from mmlk.data.errors import DataError, MissingDataError

_SHOWN = 5
_KEYS = {
    'images': ('id', 'file_name', 'height', 'width'),
    'categories': ('id', 'name'),
    'annotations': ('id', 'image_id', 'category_id'),
}


def check_coco_file(
    path: Path,
    images: Path,
    classes: Sequence[str] | None = None,
    training: bool = True,
    masks: bool = True,
    filter_cfg: Mapping | None = None,
) -> list[str]:
    """Check an annotation file and the presence of its images.

    Args:
        path: The JSON file.
        images: Folder of the images.
        classes: Names of the classes in the order of their numbers; COCO's 80 by default.
        training: Whether there must be objects to learn from, and ``filter_cfg`` is heeded.
        masks: Whether the pipeline loads masks, which every object then needs.
        filter_cfg: Which images the data set leaves out (``filter_empty_gt``, ``min_size``).

    Returns:
        Lines to log: what the file holds, and how much of it is unusual but harmless.

    Raises:
        DataError: If the file is truncated or no COCO file; has no image that is used; has no
            object to learn from; numbers its categories otherwise than the classes; refers to
            images or categories it does not define; holds boxes, sizes or masks that cannot be
            used; or names images that are not there.
    """
    content = _read(path, training)
    _refuse(path, _structural_problems(content))
    if not content['images']:
        raise DataError(f'{path}: the file lists no image')
    if training and not content['annotations']:
        raise DataError(f'{path}: the file has no annotation, so there is nothing to learn from')
    classes = tuple(classes or COCO)
    notes = _check_categories(path, content['categories'], classes)
    identities = {entry['id'] for entry in content['categories'] if entry['name'] in classes}
    by_id = {image['id']: image for image in content['images']}
    used = _used_images(content, identities, filter_cfg if training else None)
    if not used:
        raise DataError(f'{path}: filter_cfg={dict(filter_cfg)} leaves none of {len(by_id)} images')
    names = _ImageNames(images)
    problems = (problem for image in used for problem in names.problems(image))
    _refuse(path, problems, MissingDataError)
    tally = judge_annotations(content, by_id, identities, masks)
    _refuse(path, iter(tally.problems))
    if training and not tally.kept:
        raise DataError(f'{path}: {nothing_kept(len(content["annotations"]), tally)}')
    return _summary(path, content, tally) + notes + names.notes(path)


def _read(path: Path, training: bool) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise DataError(f'{path}: no JSON text ({error})') from None
    except RecursionError:
        raise DataError(f'{path}: no COCO file, its lists are nested too deeply') from None
    except json.JSONDecodeError as error:
        size = path.stat().st_size
        raise MissingDataError(
            f'{path}: broken JSON at character {error.pos} of a file of {size} bytes '
            f'({error.msg}); it is probably truncated: download or copy it again'
        ) from None
    if not isinstance(content, dict):
        raise DataError(f'{path}: no COCO file, its top level is a {type(content).__name__}')
    if not training:  # image lists of test sets have none
        content.setdefault('annotations', [])
    missing = [key for key in _KEYS if not isinstance(content.get(key), list)]
    if missing:
        raise DataError(
            f'{path}: no COCO instance file, the list(s) {", ".join(missing)} are missing'
        )
    return content


def _refuse(path: Path, problems: Iterator[str], kind: type[DataError] = DataError) -> None:
    found = list(problems)
    if found:
        more = f'\n    ... and {len(found) - _SHOWN} more' if len(found) > _SHOWN else ''
        raise kind(f'{path}: {len(found)} problem(s)\n    ' + '\n    '.join(found[:_SHOWN]) + more)


def _structural_problems(content: dict) -> Iterator[str]:
    for section, keys in _KEYS.items():
        for number, entry in enumerate(content[section]):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                yield f'{section}[{number}] has no {", ".join(missing)}'
            elif section == 'images' and not _is_size(entry['height'], entry['width']):
                yield (
                    f'images[{number}] ({entry["file_name"]}) has height {entry["height"]!r} and '
                    f'width {entry["width"]!r}, which are no numbers of pixels'
                )
        seen = Counter(
            repr(entry['id'])
            for entry in content[section]
            if isinstance(entry, dict) and 'id' in entry
        )
        for identity, count in seen.items():
            if count > 1:
                yield f'id {identity} appears {count} times in {section}'


def _check_categories(path: Path, categories: list[dict], classes: tuple[str, ...]) -> list[str]:
    """Whether the loader gives every class its own number.

    It numbers the categories that are among the classes in the order of the file, whatever the
    order of the classes.
    """
    names = [category['name'] for category in categories]
    numbered = [name for name in names if name in classes]
    if not numbered:
        raise DataError(
            f'{path}: none of its categories ({_listed(names)}) is among the classes of the data '
            f'set ({_listed(classes)})'
        )
    absent = [name for name in classes if name not in names]
    spare = [name for name in names if name not in classes]
    meant = {name: get_close_matches(name, spare, n=1) for name in absent}
    hints = ''.join(
        f'; {name!r} is not in the file, did you mean {close[0]!r}?'
        for name, close in meant.items()
        if close
    )
    if tuple(numbered) != classes[: len(numbered)] or hints:
        wrong = next(
            (pair for pair in zip(numbered, classes) if pair[0] != pair[1]), (None, absent[:1])
        )
        order = hints or (
            f'; {wrong[0]!r} would be learnt as {wrong[1]!r}. Write classes in the order of the '
            f'file, without names that it lacks: {tuple(numbered)}'
        )
        raise DataError(
            f'{path}: its categories are numbered otherwise than the classes of the data set{order}'
        )
    if absent:
        return [f'warning: {path} has no category for the class(es) {_listed(absent)}']
    return []


def _used_images(content: dict, identities: set, filter_cfg: Mapping | None) -> list[dict]:
    """The images that are left after the data set's filter."""
    filters = filter_cfg or {}
    shown = {
        entry['image_id'] for entry in content['annotations'] if entry['category_id'] in identities
    }
    return [
        image
        for image in content['images']
        if min(image['height'], image['width']) >= filters.get('min_size', 0)
        and (image['id'] in shown or not filters.get('filter_empty_gt', False))
    ]


class _ImageNames:
    """Are the files there, and do they lie where they seem to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.present = set(os.listdir(folder)) if folder.is_dir() else set()
        self.away: list[str] = []

    def problems(self, image: dict) -> Iterator[str]:
        name = image['file_name']
        if not isinstance(name, str):
            yield f'image {image["id"]}: file_name {name!r} is no text'
            return
        if name in self.present:
            return
        if os.path.isabs(name) or os.path.normpath(name).startswith('..'):
            self.away.append(name)
        if not (self.folder / name).is_file():
            yield f'image {image["id"]}: no file {self.folder / name}'

    def notes(self, path: Path) -> list[str]:
        if not self.away:
            return []
        return [
            f'warning: {len(self.away)} file names in {path} lead out of {self.folder}: '
            f'{_listed(self.away)}'
        ]


def _summary(path: Path, content: dict, tally: Tally) -> list[str]:
    """What the file holds and what of it the loader skips, cuts or ignores, in counts."""
    annotations, images = content['annotations'], content['images']
    bare = len(images) - len({annotation['image_id'] for annotation in annotations})
    lines = [
        f'{len(images)} images, {len(annotations)} annotations in {path}'
        + (f'; {bare} images have no object' if bare else '')
    ]
    for number, text in (
        (tally.cut, 'boxes in {} reach beyond their image; they are cut'),
        (tally.outside, 'boxes in {} lie outside their image; they are skipped'),
        (tally.without_area, 'annotations in {} are below one pixel; they are skipped'),
        (tally.without_polygon, 'masks in {} have no polygon of three points; they are ignored'),
    ):
        if number:
            lines.append(f'warning: {number} {text.format(path)}')
    if tally.other_categories:
        lines.append(
            f'{tally.other_categories} annotations in {path} are of categories that are no class '
            'of the data set'
        )
    return lines


def _is_size(*sides: object) -> bool:
    return all(is_number(side) and side > 0 for side in sides)


def _listed(names: Sequence[str]) -> str:
    return ', '.join(map(repr, names[:_SHOWN])) + (', ...' if len(names) > _SHOWN else '')

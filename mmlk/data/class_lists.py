"""Checks of the files that list the pictures of a classification set, one "path label" a line."""

from __future__ import annotations

from pathlib import Path

from mmlk.data.errors import DataError


def check(path: Path, folder: Path, num_classes: int | None) -> int:
    """Check what MMPretrain's loader reads from a list: a path, a blank, a label from 0.

    Args:
        path: The list.
        folder: Folder to which the paths belong; of the pictures the first alone is looked for.
        num_classes: Classes of the head, None if unknown.

    Returns:
        Number of pictures.

    Raises:
        DataError: Naming file, line and remedy, if a line is something else, a label has no class in
            the head, labels are numbered from 1, or the list names no picture.
    """
    labels: dict[int, int] = {}  # label: the first line that has it
    lines = _lines(path)
    for number, line in enumerate(lines, 1):
        name, _, label = line.strip().rpartition(' ')
        if not name or not label.isdecimal():
            raise DataError(
                f'{path}, line {number}: {line!r} is not "path label"; a line has the path of a '
                'picture, a blank, and the number of its class, counted from 0'
            )
        labels.setdefault(int(label), number)
        first = folder / name
        if number == 1 and not first.is_file():
            raise DataError(
                f'{path}, line 1: there is no file {first}; paths in the list belong to {folder}'
            )
    if not labels:
        raise DataError(f'{path} lists no picture')
    highest = max(labels)
    if num_classes is not None and highest >= num_classes:
        counted = (
            '; labels seem to be counted from 1, subtract 1 from each'
            if highest == num_classes and min(labels) == 1
            else '; set it to the number of classes, or correct the list'
        )
        raise DataError(
            f'{path}, line {labels[highest]}: label {highest} has no class, since '
            f'model.head.num_classes is {num_classes} and labels count from 0{counted}'
        )
    return len(lines)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f'{path} is not text in UTF-8: {error.reason} at {error.start}') from error

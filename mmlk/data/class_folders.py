"""Checks of data sets that keep one folder per class, as MMPretrain's loaders number them.

A loader numbers classes by the order of their folders. A folder that is missing in one of two sets
would therefore shift every later label, and the accuracy would be that of other classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmlk.data import class_lists
from mmlk.data.errors import DataError

KINDS = ('ImageNet', 'CustomDataset')
"""Data sets of MMPretrain that may lie in class folders."""

HELP = """\
Expected layout:
    {root}/
        train/CLASS/*.jpg    val/CLASS/*.jpg
    or images in any folders and meta/train.txt, meta/val.txt with lines "path label"
Source: ImageNet-1K (ILSVRC 2012) from https://image-net.org/download; its validation images come in
    one folder and have to be sorted into class folders, or listed in meta/val.txt
Remedy: --cfg-options data_root=PATH, or set MMLK_IMAGENET_ROOT=PATH (configs ending in _mini:
    MMLK_MINI_ROOT=PATH) in the environment;
    or generate pictures: mmlk generate-data PATH --format classes"""

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')


def check(cfg: Mapping, loaders: Sequence[str]) -> list[str]:
    """Check the class folders that the loaders of a config will read.

    Every class folder must hold an image. All sets must have the same class folders, as many as the
    head has classes. Of a set that a file lists, the file is checked. Sets that lie elsewhere are not
    looked into.

    Args:
        cfg: Merged config.
        loaders: Keys of the loaders to check.

    Returns:
        One line per data set: what was found.

    Raises:
        DataError: Naming loader, folder, expected layout and remedy.
    """
    lines, classes_of = [], {}
    num_classes = ((cfg.get('model') or {}).get('head') or {}).get('num_classes')
    for loader in loaders:
        for dataset in _leaves((cfg.get(loader) or {}).get('dataset')):
            try:
                line, classes = _check_dataset(dataset, num_classes)
            except DataError as error:
                root = dataset.get('data_root') or '.'
                raise DataError(f'{loader}: {error}\n{HELP.format(root=root)}') from None
            lines.append(f'{loader}: {line}')
            if classes and classes_of.setdefault(loader, classes) != classes:
                odd = sorted({*classes} ^ {*classes_of[loader]})
                raise DataError(
                    f'{loader}: its data sets have different class folders, {odd[0]!r} for one; their '
                    'labels would mean different classes'
                )
    _check_agreement(classes_of, num_classes)
    return lines


def _leaves(dataset) -> Iterator[Mapping]:
    """Local data sets in class folders, inside wrappers or not."""
    if isinstance(dataset, Sequence) and not isinstance(dataset, str):
        for child in dataset:
            yield from _leaves(child)
    elif isinstance(dataset, Mapping):
        backend = (dataset.get('backend_args') or {}).get('backend', 'local')
        remote = backend != 'local' or '://' in str(dataset.get('data_root') or '')
        if str(dataset.get('type', '')).rpartition('.')[2] in KINDS and not remote:
            yield dataset
        for key in ('dataset', 'datasets'):
            yield from _leaves(dataset.get(key))


def _check_dataset(dataset: Mapping, num_classes: int | None) -> tuple[str, list[str]]:
    """What was found, and the class folders; none where a file lists the images."""
    root, split = Path(dataset.get('data_root') or ''), dataset.get('split') or ''
    prefix = dataset.get('data_prefix') or split
    if isinstance(prefix, Mapping):
        prefix = prefix.get('img_path') or ''
    folder = root / prefix
    if not folder.is_dir():
        raise DataError(f'no folder {folder}')
    listed = root / (dataset.get('ann_file') or Path('meta', f'{split}.txt'))
    if dataset.get('ann_file') and not listed.is_file():
        raise DataError(f'no list of images {listed}')
    labelled = dataset.get('with_label', True) and split != 'test'  # as the loader decides
    if not labelled:
        return f'images without labels in {folder}', []
    if listed.is_file():
        count = class_lists.check(listed, folder, num_classes)
        return f'{count} images listed in {listed}', []
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise DataError(f'{folder} has no class folders; an image lies in the folder of its class')
    suffixes = tuple(each.lower() for each in dataset.get('extensions') or _SUFFIXES)
    counts = {name: _count_images(folder / name, suffixes) for name in classes}
    named = list((dataset.get('metainfo') or {}).get('classes') or ())
    if named != classes and sorted(named) == classes:
        raise DataError(
            f'metainfo.classes names the class folders of {folder} in another order, starting with '
            f'{named[0]!r}; labels follow the alphabet, starting with {classes[0]!r}: leave it out, or '
            'write the names in that order'
        )
    empty = next((name for name, count in counts.items() if not count), None)
    if empty:
        raise DataError(f'the class folder {folder / empty} holds no image')
    return f'{sum(counts.values())} images of {len(classes)} classes in {folder}', classes


def _check_agreement(classes_of: Mapping[str, list[str]], num_classes: int | None) -> None:
    """Check that all sets number the same classes, as many as the head has."""
    first = next(iter(classes_of), None)
    for loader, classes in classes_of.items():
        odd = sorted({*classes} ^ {*classes_of[first]})
        if odd:
            raise DataError(
                f'{first} and {loader} have different class folders, {odd[0]!r} for one; their '
                'labels would mean different classes'
            )
    for loader, classes in classes_of.items():
        if num_classes is not None and len(classes) != num_classes:
            raise DataError(
                f'{loader}: there are {len(classes)} class folders, but model.head.num_classes is '
                f'{num_classes}; set it and data_preprocessor.num_classes, and read the folders as '
                "type='CustomDataset' where the config has ImageNet, whose thousand names are fixed; "
                'or name another folder'
            )


def _count_images(folder: Path, suffixes: tuple[str, ...]) -> int:
    return sum(
        name.lower().endswith(suffixes)
        for _, _, names in os.walk(folder, followlinks=True)
        for name in names
    )

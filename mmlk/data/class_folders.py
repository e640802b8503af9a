"""Checks of data sets that keep one folder per class, as MMPretrain's loaders number them.

A loader numbers classes by the order of their folders. A folder that is missing in one of two sets
would therefore shift every later label, and the accuracy would be that of other classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

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
    or generate pictures: python tools/generate_data.py PATH --format classes"""

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')


def image_folder(dataset: Mapping) -> Path:
    """Folder of the class folders."""
    prefix = dataset.get('data_prefix') or dataset.get('split') or ''
    if isinstance(prefix, Mapping):
        prefix = prefix.get('img_path') or ''
    return Path(dataset.get('data_root') or '') / prefix


def list_file(dataset: Mapping) -> Path | None:
    """File that lists images and labels, if the set has one; folders do not count then."""
    root, split = Path(dataset.get('data_root') or ''), dataset.get('split')
    if dataset.get('ann_file'):
        return root / dataset['ann_file']
    listed = root / 'meta' / f'{split}.txt' if split else None
    return listed if listed is not None and listed.is_file() else None


def check_class_folders(dataset: Mapping) -> str:
    """Check that every class folder holds an image; one line on what was found.

    Raises:
        DataError: If the folder, its class folders or the images of a class are missing.
    """
    folder, listed = image_folder(dataset), list_file(dataset)
    if not folder.is_dir():
        raise DataError(f'no folder {folder}')
    if listed is not None:
        return f'{len(listed.read_text().splitlines())} images listed in {listed}'
    classes = _classes(folder)
    if not classes:
        raise DataError(
            f'{folder} has no class folders; every image lies in the folder of its class'
        )
    total = 0
    for name in classes:
        count = sum(1 for _ in _images(folder / name))
        if not count:
            raise DataError(f'the class folder {folder / name} holds no image')
        total += count
    return f'{total} images of {len(classes)} classes in {folder}'


def check_agreement(datasets: Mapping[str, Mapping], num_classes: int | None) -> None:
    """Check that all sets number the same classes, as many as the head has.

    Args:
        datasets: Data sets by the name of their loader.
        num_classes: Classes of the model's head; None where there is none.

    Raises:
        DataError: Naming the two that differ, and the first class that one of them lacks.
    """
    listed = {
        name: _classes(image_folder(dataset))
        for name, dataset in datasets.items()
        if list_file(dataset) is None
    }
    first = next(iter(listed), None)
    for name, classes in listed.items():
        if num_classes is not None and len(classes) != num_classes:
            raise DataError(
                f'{name}: {image_folder(datasets[name])} has {len(classes)} class folders, '
                f'model.head has num_classes={num_classes}; set both model.head.num_classes and '
                'data_preprocessor.num_classes, or name another folder'
            )
        odd = sorted({*classes} ^ {*listed[first]})
        if odd:
            raise DataError(
                f'{first} and {name} have different class folders, {odd[0]!r} for one; labels '
                'would mean different classes'
            )


def _classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def _images(folder: Path) -> Iterator[str]:
    for _, _, names in os.walk(folder, followlinks=True):
        yield from (name for name in names if name.lower().endswith(_SUFFIXES))

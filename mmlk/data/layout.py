"""Checks of the data sets that a config names, to be run before any model is built.

They cost milliseconds for ADE20K; for COCO the annotation file is parsed once. Only the standard
library is needed, and the config may be a plain dict.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmlk.data.coco_file import DataError, check_coco_file

__all__ = ['DataError', 'check_datasets', 'leaf_datasets', 'segmentation_folders']

# Listing sizes takes one system call per file; beyond this many, emptiness is left to the loaders.
_MOST_SIZES_READ = 25_000

_ADE20K_HELP = """\
Expected layout:
    {root}/
        images/training/*.jpg         images/validation/*.jpg
        annotations/training/*.png    annotations/validation/*.png
Source: the 2016 scene parsing challenge release (20,210 + 2,000 images),
    http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip
    The full ADE20K data set is another release, with other folders and labels; it does not fit.
Remedy: --cfg-options data_root=PATH, or set MMLK_ADE20K_ROOT=PATH (configs ending in _mini:
    MMLK_MINI_ROOT=PATH) in the environment;
    or generate scenes: mmlk generate-data PATH --format ade20k"""

_COCO_HELP = """\
Expected layout:
    {root}/
        train2017/*.jpg    val2017/*.jpg
        annotations/instances_train2017.json    annotations/instances_val2017.json
Source: COCO 2017 from https://cocodataset.org/#download (2017 Train images, 2017 Val images,
    2017 Train/Val annotations)
Remedy: --cfg-options data_root=PATH, or set MMLK_COCO_ROOT=PATH (configs ending in _mini:
    MMLK_MINI_ROOT=PATH) in the environment;
    or generate scenes: mmlk generate-data PATH --format coco"""

_HELP = {'ADE20KDataset': _ADE20K_HELP, 'CocoDataset': _COCO_HELP}


def check_datasets(
    cfg: Mapping,
    loaders: Sequence[str] = ('train_dataloader', 'val_dataloader'),
    contents: bool | None = None,
) -> list[str]:
    """Check that what the data loaders of a config will read is there and complete.

    Folders and annotation files must exist and hold something; every image of a segmentation set
    must have its label map and none of the files may be empty; a COCO file must be whole and
    consistent (:func:`mmlk.data.coco_file.check_coco_file`). Data behind a remote file backend and
    custom data sets without folders are not looked at.

    Args:
        cfg: Merged config.
        loaders: Keys of the loaders to check; absent or empty ones pass.
        contents: Also parse annotation files. By default, the first process of a distributed run
            alone does.

    Returns:
        One line per data set: what was found, and what deserves a warning.

    Raises:
        DataError: Naming loader, path, expected layout, source and remedy.
    """
    if contents is None:
        contents = os.environ.get('RANK', '0') == '0'
    lines = []
    for loader in loaders:
        for dataset in leaf_datasets((cfg.get(loader) or {}).get('dataset')):
            if not _is_local(dataset):
                continue
            try:
                lines += [f'{loader}: {line}' for line in _check_dataset(dataset, contents)]
            except DataError as error:
                raise DataError(f'{loader}: {error}{_advice(dataset)}') from None
    return lines


def leaf_datasets(dataset) -> Iterator[Mapping]:
    """The data sets inside wrappers such as RepeatDataset, ConcatDataset, ClassBalancedDataset."""
    if isinstance(dataset, Mapping):
        inner = [dataset[key] for key in ('dataset', 'datasets') if dataset.get(key)]
        if not inner:
            yield dataset
        for child in inner:
            yield from leaf_datasets(child)
    elif isinstance(dataset, Sequence) and not isinstance(dataset, str):
        for child in dataset:
            yield from leaf_datasets(child)


def segmentation_folders(dataset: Mapping) -> tuple[Path, Path] | None:
    """Image and label folder of a segmentation data set; None if it is none."""
    prefix = dataset.get('data_prefix') or {}
    if not prefix.get('img_path') or not prefix.get('seg_map_path'):
        return None
    return _join(dataset, prefix['img_path']), _join(dataset, prefix['seg_map_path'])


def coco_paths(dataset: Mapping) -> tuple[Path, Path] | None:
    """Annotation file and image folder of a COCO data set; None if it is none."""
    if _kind(dataset) != 'CocoDataset':
        return None
    prefix = dataset.get('data_prefix') or {}
    return _join(dataset, dataset.get('ann_file') or ''), _join(dataset, prefix.get('img') or '')


def _check_dataset(dataset: Mapping, contents: bool) -> list[str]:
    root = dataset.get('data_root')
    if root and not os.path.isdir(root):
        raise DataError(f'no folder {_shown(root)}')
    coco = coco_paths(dataset)
    if coco:
        return _check_coco(*coco, dataset, contents)
    if dataset.get('ann_file'):
        _require_file(_join(dataset, dataset['ann_file']))
    folders = segmentation_folders(dataset)
    if folders is None:
        return []
    return [_check_segmentation(*folders, dataset)]


def _check_segmentation(images: Path, labels: Path, dataset: Mapping) -> str:
    suffix = dataset.get('img_suffix', '.jpg'), dataset.get('seg_map_suffix', '.png')
    pictures, maps = (_names(*pair) for pair in zip((images, labels), suffix))
    if not dataset.get('ann_file'):
        missing = sorted(pictures - maps)
        if missing:
            raise DataError(
                f'{len(missing)} of {len(pictures)} images in {_shown(images)} have no label map '
                f'in {_shown(labels)}: {missing[0]}{suffix[1]} for one'
            )
    return f'{len(pictures)} images in {images}'


def _check_coco(annotations: Path, images: Path, dataset: Mapping, contents: bool) -> list[str]:
    _require_file(annotations)
    _require_folder(images)
    if not contents:
        return []
    classes = (dataset.get('metainfo') or {}).get('classes')
    return check_coco_file(
        annotations, images, classes, require_objects=not dataset.get('test_mode', False)
    )


def _names(folder: Path, suffix: str) -> set[str]:
    """Paths of the files below a folder, without suffix; none may be empty."""
    _require_folder(folder)
    found, empty = set(), None
    for parent, _, files in os.walk(folder, followlinks=True):
        for name in files:
            if name.endswith(suffix):
                path = os.path.join(parent, name)
                if len(found) < _MOST_SIZES_READ and os.path.getsize(path) == 0:
                    empty = path
                found.add(os.path.relpath(path, folder)[: -len(suffix)])
    if not found:
        raise DataError(f'no *{suffix} file in {_shown(folder)}')
    if empty:
        raise DataError(f'the file {_shown(empty)} is empty')
    return found


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f'no folder {_shown(folder)}')


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f'no annotation file {_shown(path)}')


def _advice(dataset: Mapping) -> str:
    help_text = _HELP.get(_kind(dataset))
    if help_text is None:
        return ''
    root = dataset.get('data_root') or '.'
    return f'\n{_near_miss(Path(root))}{help_text.format(root=root)}'


def _near_miss(root: Path) -> str:
    """A sentence on a root that is almost right."""
    if (root / 'ADEChallengeData2016' / 'images').is_dir():
        return f'Note: {root / "ADEChallengeData2016"} looks like the folder that is meant.\n'
    if (root / 'index_ade20k.pkl').exists() or (root / 'images' / 'ADE').is_dir():
        return f'Note: {root} looks like the full ADE20K data set, which is the other release.\n'
    return ''


def _kind(dataset: Mapping) -> str:
    return str(dataset.get('type', '')).rsplit('.', 1)[-1]


def _join(dataset: Mapping, path: str) -> Path:
    return Path(dataset.get('data_root') or '') / path


def _is_local(dataset: Mapping) -> bool:
    backend = (dataset.get('backend_args') or {}).get('backend', 'local')
    return backend == 'local' and '://' not in str(dataset.get('data_root') or '')


def _shown(path) -> str:
    """A path as the config says it, and where that is if it is relative."""
    path = Path(path)
    return f'{path}' if path.is_absolute() else f'{path} (that is, {path.absolute()})'

"""Checks of the data sets that a config names, to be run before any model is built.

A folder that is not there is found at once; for the rest the registered class of the data set lists
its samples (:mod:`mmlk.data.registered`), which costs as long as its own loading.
"""

from __future__ import annotations

import filecmp
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmlk.data import class_folders
from mmlk.data.coco_file import check_coco_file
from mmlk.data.errors import DataError, MissingDataError
from mmlk.data.heads import check_heads
from mmlk.data.opened import is_local, leaf_datasets, named, open_datasets
from mmlk.data.pipelines import reads_labels, reads_masks
from mmlk.data.registered import load_samples, sample_files, shown, type_name

if TYPE_CHECKING:
    from mmengine.dataset import BaseDataset

__all__ = ['DataError', 'check_datasets', 'leaf_datasets']

# Listing sizes takes one system call per file; beyond this many, emptiness is left to the loaders.
_MOST_SIZES_READ = 25_000
_LABELS = ('seg_map_path', 'depth_map_path')


def check_datasets(
    cfg: Mapping,
    loaders: Sequence[str] = ('train_dataloader', 'val_dataloader'),
    contents: bool | None = None,
) -> list[str]:
    """Check that what the data loaders of a config will read is there and complete.

    Every file that a data set lists must be there and hold something; a COCO file must be whole and
    consistent (:func:`mmlk.data.coco_file.check_coco_file`) and the one that the evaluator reads;
    the heads of the model must fit the classes (:func:`mmlk.data.heads.check_heads`).
    Data behind a remote file backend, and classes that cannot be asked, are left to the loader,
    which a line says.

    Args:
        cfg: Merged config.
        loaders: Keys of the loaders to check; absent or empty ones pass.
        contents: Also read what the data sets list. By default, the first process of a distributed
            run alone does.

    Returns:
        One line per data set: what was found, and what deserves a warning.

    Raises:
        DataError: Naming loader, path and cause; for ADE20K and COCO expected layout, source and
            remedy as well.
    """
    if contents is None:
        contents = os.environ.get('RANK', '0') == '0'
    class_folders.check(cfg, loaders)
    opened = open_datasets(cfg, loaders)
    lines = check_heads(cfg, opened)
    if not contents:
        return []
    for loader, settings, dataset in opened:
        with named(loader, settings):
            if dataset is None:
                lines.append(f'{loader}: {_unasked(settings)}')
            else:
                lines += [f'{loader}: {line}' for line in _check_dataset(dataset, settings)]
                _check_evaluator(cfg, loader, dataset)
    return lines


def _check_dataset(dataset: BaseDataset, settings: Mapping) -> list[str]:
    if _is_plain_coco(dataset):
        return _check_coco(dataset, settings)
    samples = load_samples(dataset, settings)
    if not samples:
        raise MissingDataError(_nothing_listed(dataset))
    _check_files(samples, with_labels=reads_labels(settings))
    objects = [entry for sample in samples for entry in sample.get('instances', ())]
    if 'instances' in samples[0] and not dataset.test_mode:
        if all(entry.get('ignore_flag') for entry in objects):
            raise DataError(
                f'none of its {len(samples)} samples has an object to learn from '
                f'({len(objects)} are to be ignored); are its classes {_few(dataset)} those of the '
                'annotations?'
            )
    return [f'{len(samples)} samples {_place(dataset)}']


def _is_plain_coco(dataset: BaseDataset) -> bool:
    """Whether a data set reads its annotation file as MMDetection's CocoDataset does."""
    for parent in type(dataset).__mro__:
        if (parent.__module__, parent.__name__) == ('mmdet.datasets.coco', 'CocoDataset'):
            same = ('load_data_list', 'parse_data_info', 'filter_data')
            return all(getattr(type(dataset), name) is getattr(parent, name) for name in same)
    return False


def _check_coco(dataset: BaseDataset, settings: Mapping) -> list[str]:
    file, images = Path(dataset.ann_file), Path(dataset.data_prefix.get('img') or '')
    if not file.is_file():
        raise MissingDataError(f'no annotation file {shown(file)}')
    if not images.is_dir():
        raise MissingDataError(f'no folder {shown(images)}')
    return check_coco_file(
        file,
        images,
        dataset.metainfo.get('classes'),
        training=not dataset.test_mode,
        masks=reads_masks(settings),
        filter_cfg=dataset.filter_cfg,
    )


def _check_files(samples: list[dict], with_labels: bool) -> None:
    """Whether all files of the samples are there and hold something; one listing per folder."""
    files = [
        (kind, path) for kind, path in sample_files(samples) if with_labels or kind not in _LABELS
    ]
    folders: dict[str, set[str]] = {}
    missing: dict[str, list[str]] = {}
    for number, (kind, path) in enumerate(files):
        folder, name = os.path.split(path)
        if folder not in folders:
            if not os.path.isdir(folder or '.'):
                raise MissingDataError(f'no folder {shown(folder)}')
            folders[folder] = set(os.listdir(folder or '.'))
        if name not in folders[folder]:
            missing.setdefault(kind, []).append(path)
        elif number < _MOST_SIZES_READ and os.path.getsize(path) == 0:
            raise DataError(f'the file {shown(path)} is empty')
    for kind, paths in missing.items():
        what = 'images have no label map' if kind in _LABELS else 'images are missing'
        total = sum(other == kind for other, _ in files)
        there = _suffixes(folders[os.path.dirname(paths[0])])
        raise MissingDataError(
            f'{len(paths)} of {total} {what}: no file {shown(paths[0])} for one; '
            f'its folder holds {there}'
        )


def _nothing_listed(dataset: BaseDataset) -> str:
    folder, suffix = _prefix(dataset).get('img_path'), getattr(dataset, 'img_suffix', None)
    if getattr(dataset, 'ann_file', None) or not folder or not suffix:
        return f'{type(dataset).__name__} lists no sample {_place(dataset)}'
    names = [name for _, _, found in os.walk(folder, followlinks=True) for name in found]
    return (
        f'no *{suffix} file in {shown(folder)}, which holds {_suffixes(names)}; img_suffix of the '
        'data set says which files are images'
    )


def _suffixes(names: Sequence[str] | set[str]) -> str:
    """What kinds of files there are, such as '*.png (12), *.txt (1)'."""
    counts = Counter(os.path.splitext(name)[1] for name in names)
    return ', '.join(f'*{kind} ({count})' for kind, count in counts.most_common(4)) or 'nothing'


def _check_evaluator(cfg: Mapping, loader: str, dataset: BaseDataset) -> None:
    """Whether the evaluator reads the annotation file of the loader."""
    key = loader.replace('_dataloader', '_evaluator')
    evaluators = cfg.get(key) or ()
    mine = getattr(dataset, 'ann_file', None)
    for evaluator in [evaluators] if isinstance(evaluators, Mapping) else evaluators:
        theirs = evaluator.get('ann_file')
        if (
            not theirs
            or not mine
            or '://' in str(theirs)
            or os.path.realpath(theirs) == os.path.realpath(mine)
        ):
            continue
        if not os.path.isfile(theirs):
            raise MissingDataError(
                f'{key} reads {shown(theirs)}, which is not there; the loader reads {mine}'
            )
        if not filecmp.cmp(theirs, mine, shallow=False):
            raise DataError(
                f'{key} compares with {shown(theirs)} while the loader reads {shown(mine)}: '
                f'predictions would be judged by other images. Write {key}.ann_file={mine!r}'
            )


def _unasked(settings: Mapping) -> str:
    if not is_local(settings):
        return f'the data of {type_name(settings)} lie behind a file backend and were not looked at'
    return (
        f'{type_name(settings)} is no registered data set that could be asked for its files, so they '
        'were not looked at; the loader will judge'
    )


def _place(dataset: BaseDataset) -> str:
    prefix = _prefix(dataset)
    named = [prefix.get('img_path') or prefix.get('img'), getattr(dataset, 'ann_file', None)]
    return 'in ' + ' by '.join(str(path) for path in named if path)


def _prefix(dataset: BaseDataset) -> Mapping:
    return dataset.data_prefix if isinstance(dataset.data_prefix, Mapping) else {}


def _few(dataset: BaseDataset) -> str:
    classes = list(dataset.metainfo.get('classes') or ())
    return ', '.join(map(repr, classes[:3])) + (', ...' if len(classes) > 3 else '')

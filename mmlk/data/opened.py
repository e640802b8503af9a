"""The data sets of a config, each opened by its registered class but not loaded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from mmlk.data.errors import DataError, MissingDataError
from mmlk.data.help import advice
from mmlk.data.registered import open_dataset, shown

if TYPE_CHECKING:
    from mmengine.dataset import BaseDataset


class Opened(NamedTuple):
    """A data set of a config, opened but not loaded.

    Attributes:
        loader: Key of the data loader.
        settings: Its entry in the config.
        dataset: The data set; None where its class cannot be asked or its files are elsewhere.
    """

    loader: str
    settings: Mapping
    dataset: BaseDataset | None


def open_datasets(cfg: Mapping, loaders: Sequence[str]) -> list[Opened]:
    """The data sets of a config, each as its registered class describes it.

    Raises:
        DataError: If a root is not there, a class refuses its arguments, or ``classes`` are no names.
    """
    scope = cfg.get('default_scope')
    for loader, settings in _entries(cfg, loaders):
        with named(loader, settings):
            _require_root(settings)
    opened = []
    for loader, settings in _entries(cfg, loaders):
        with named(loader, settings):
            _check_class_names(settings)
            dataset = open_dataset(settings, scope) if is_local(settings) else None
        opened.append(Opened(loader, settings, dataset))
    return opened


def leaf_datasets(dataset: object) -> Iterator[Mapping]:
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


@contextmanager
def named(loader: str, settings: Mapping) -> Iterator[None]:
    """Put the loader's name before a DataError, and advice on well-known data sets after it."""
    try:
        yield
    except MissingDataError as error:
        raise MissingDataError(f'{loader}: {error}{advice(settings)}') from error
    except DataError as error:
        raise DataError(f'{loader}: {error}') from error


def is_local(settings: Mapping) -> bool:
    """Whether the files of a data set lie on this machine."""
    backend = (settings.get('backend_args') or {}).get('backend', 'local')
    return backend == 'local' and '://' not in str(settings.get('data_root') or '')


def _entries(cfg: Mapping, loaders: Sequence[str]) -> Iterator[tuple[str, Mapping]]:
    for loader in loaders:
        for settings in leaf_datasets((cfg.get(loader) or {}).get('dataset')):
            yield loader, settings


def _require_root(settings: Mapping) -> None:
    root = settings.get('data_root')
    if root and is_local(settings) and not os.path.isdir(root):
        raise MissingDataError(f'no folder {shown(root)}')


def _check_class_names(settings: Mapping) -> None:
    classes = (settings.get('metainfo') or {}).get('classes')
    if isinstance(classes, str) and not os.path.isfile(classes):
        raise DataError(
            f'metainfo.classes={classes!r} is one text, whose letters would count as names, and no '
            f'file of this name is here; write classes=({classes!r},), with the comma, or name a '
            'text file with one class a line'
        )
    twice = [name for name, count in Counter(classes or ()).items() if count > 1]
    if not isinstance(classes, str) and twice:
        raise DataError(f'metainfo.classes names {twice[0]!r} twice')

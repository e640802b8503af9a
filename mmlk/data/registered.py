"""What the registered class of a data set says: which files it reads, under which suffixes.

Nothing is guessed. The class named in a config is looked up in its registry and built with
``lazy_init=True`` and no pipeline, and its own ``full_init`` lists the samples. A class that
cannot be asked (unregistered, or no ``mmengine.dataset.BaseDataset``) is left to the data loader.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmlk.data.errors import DataError, MissingDataError

if TYPE_CHECKING:
    from mmengine.dataset import BaseDataset


# What is passed otherwise than the config says, and what is no argument of the class.
_REPLACED = ('type', '_scope_', 'pipeline', 'lazy_init', 'serialize_data')


def registered_class(name: str | type, scope: str | None) -> type | None:
    """The class that a config means by ``type=name``, or None where it cannot be asked.

    Args:
        name: Registered name, with or without scope, or the class itself.
        scope: The config's ``default_scope``.

    Raises:
        DataError: If the package of the scope cannot be imported, with the cause.
    """
    from mmengine.dataset import BaseDataset
    from mmengine.registry import DATASETS

    if isinstance(name, str):
        try:
            if scope and scope != 'mmengine':
                import_module(f'{scope}.registry')
            name = DATASETS.children.get(scope, DATASETS).get(name)
        except Exception as error:  # registries import their package when they are first asked
            raise DataError(
                f'the data sets of {scope} cannot be imported: {type(error).__name__}: {error}; '
                'see "mmlk doctor"'
            ) from error
    return name if isinstance(name, type) and issubclass(name, BaseDataset) else None


def open_dataset(settings: Mapping, scope: str | None) -> BaseDataset | None:
    """The data set of a config entry, its files not read yet; None where it cannot be asked.

    Args:
        settings: Entry with ``type`` and the arguments of the class; the pipeline is left out.
        scope: The config's ``default_scope``.

    Raises:
        DataError: If the class refuses its arguments, with the cause.
    """
    dataset_class = registered_class(settings.get('type'), scope)
    if dataset_class is None:
        return None
    arguments = {key: value for key, value in settings.items() if key not in _REPLACED}
    return _asked(
        lambda: dataset_class(**arguments, pipeline=[], lazy_init=True, serialize_data=False),
        settings,
    )


def load_samples(dataset: BaseDataset, settings: Mapping) -> list[dict]:
    """The samples that a data set reads, as its own class lists them.

    Raises:
        DataError: If it cannot list them, with the cause.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        _asked(dataset.full_init, settings, dataset)
    return dataset.data_list


def sample_files(samples: list[dict]) -> Iterator[tuple[str, str]]:
    """(kind, path) of every file that samples name, such as ('img_path', 'a/b.jpg').

    A sample of a video data set holds one entry of ``images`` per frame.
    """
    for sample in samples:
        for entry in sample.get('images') or [sample]:
            for kind, path in entry.items():
                if kind.startswith(('img_path', 'seg_map_path', 'depth_map_path')):
                    if isinstance(path, (str, os.PathLike)):
                        yield kind, os.fspath(path)


def _asked(
    question: Callable[[], Any], settings: Mapping, dataset: BaseDataset | None = None
) -> Any:
    """The answer of a data set class, or a DataError that says why there is none."""
    try:
        return question()
    except Exception as error:  # classes assert, index and parse: anything may come
        cause = None if isinstance(error, ImportError) else _missing_input(settings, dataset)
        if cause:
            raise MissingDataError(cause) from error
        said = str(error).strip() or 'without a message'
        file = getattr(dataset, 'ann_file', None) or settings.get('ann_file')
        raise DataError(
            f'{type_name(settings)} refuses its data{f" ({file})" if file else ""}: '
            f'{type(error).__name__}: {said}'
        ) from error


def _missing_input(settings: Mapping, dataset: BaseDataset | None) -> str | None:
    """The first folder or file that the settings name and that is not there."""
    prefix = getattr(dataset, 'data_prefix', None) or settings.get('data_prefix') or {}
    for folder in prefix.values() if isinstance(prefix, Mapping) else [prefix]:
        if folder and not (path := joined(settings, folder, dataset)).is_dir():
            return f'no folder {shown(path)}'
    for key in sorted({'ann_file', *(key for key in settings if key.endswith('_file'))}):
        file = getattr(dataset, key, None) or settings.get(key)
        if not isinstance(file, str) or not file:
            continue
        path = joined(settings, file, dataset)
        if not path.exists():
            return f'no annotation file {shown(path)}'
        if path.is_file() and path.stat().st_size == 0:
            return f'the file {shown(path)} is empty'
    return None


def joined(settings: Mapping, path: str, dataset: BaseDataset | None = None) -> Path:
    """A path under the root of its data set; an opened data set has joined its paths itself."""
    return Path(path) if dataset is not None else Path(settings.get('data_root') or '', path)


def shown(path: Any) -> str:
    """A path as the config says it, and where that is if it is relative."""
    path = Path(path)
    return f'{path}' if path.is_absolute() else f'{path} (that is, {path.absolute()})'


def type_name(settings: Mapping) -> str:
    """Name of the class that an entry of a config asks for."""
    kind = settings.get('type', '')
    return kind if isinstance(kind, str) else kind.__name__

"""Checks that run before a model is built: packages, type names, counts of classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import Registry

from mmlk import mmcv_ops

_DISTRIBUTIONS = {
    'mmseg': 'onedl-mmsegmentation',
    'mmdet': 'onedl-mmdetection',
    'mmpretrain': 'onedl-mmpretrain',
}


def check_packages(cfg: Config) -> None:
    """Raise if what the config's scope needs is not installed.

    Raises:
        ValueError: Naming the missing package and the remedy.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    for package in ('mmcv', scope) if scope in _DISTRIBUTIONS else (scope,):
        if find_spec(package) is None:
            wanted = _DISTRIBUTIONS.get(package, f'onedl-{package}')
            raise ValueError(
                f'check_packages: the config needs the package {package!r}, which is not '
                f'installed; install {wanted} (or its upstream release), see mmlk doctor'
            )
    if scope == 'mmdet' and mmcv_ops.source() is None:
        raise ValueError(
            'check_packages: detection needs operators that this mmcv has not compiled '
            '(mmcv._ext is missing) and that torchvision would supply, but torchvision is not '
            'installed either; install the torchvision that belongs to this torch, see '
            'mmlk doctor'
        )


def check_types(cfg: Config) -> None:
    """Raise on a ``type`` that no registry knows and that resembles one that is known.

    A name which resembles nothing is left to the part that reads it: some are no registry names
    (``nms`` in a detector's test settings).

    Raises:
        ValueError: With the place, the name and the closest registered names; or with the cause, if
            the package that should register the name cannot be imported.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    with _import_errors_named(scope):
        import_module(f'{scope}.registry')
    roots = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    registries = [root.children.get(scope, root) for root in roots]
    for place, name in _types({key: cfg[key] for key in cfg}, ''):
        if any(_find(registry, name) for registry in registries):
            continue
        prefix, _, bare = name.rpartition('.')
        known = {found for registry in registries for found in _names(registry, prefix)}
        close = get_close_matches(bare, known, n=3, cutoff=0.8)
        if close:
            offered = ' or '.join(f'{prefix}.{found}'.lstrip('.') for found in close)
            raise ValueError(
                f'check_types: {place}.type={name!r} is not registered; did you mean {offered}?'
            )


def check_class_counts(cfg: Config) -> None:
    """Raise if parts of a classifier's config count other classes than its head.

    Raises:
        ValueError: With both places and numbers, and the lines to write.
    """
    head = (cfg.get('model') or {}).get('head') or {}
    count = head.get('num_classes')
    if cfg.get('default_scope') != 'mmpretrain' or count is None:
        return
    for place, settings in (
        ('data_preprocessor', cfg.get('data_preprocessor') or {}),
        ('model.data_preprocessor', cfg.model.get('data_preprocessor') or {}),
    ):
        if settings.get('num_classes', count) != count:
            raise ValueError(
                f'{place}.num_classes is {settings["num_classes"]} and model.head.num_classes is '
                f'{count}; mixed labels would have another length than the scores. Set '
                f'{place}.num_classes={count}'
            )
    for name in ('val_evaluator', 'test_evaluator'):
        metrics = cfg.get(name) or []
        for metric in metrics if isinstance(metrics, (list, tuple)) else [metrics]:
            ranks = metric.get('topk', 1)
            ranks = [*ranks] if isinstance(ranks, (list, tuple)) else [ranks]
            if max(ranks) > count:
                kept = tuple(rank for rank in ranks if rank <= count)
                raise ValueError(
                    f'{name}.topk asks for the best {max(ranks)} of {count} classes '
                    f'(model.head.num_classes); write topk={kept or (1,)}'
                )


def _types(node: Any, path: str) -> list[tuple[str, str]]:
    """(place, name) of every ``type`` string under ``node``."""
    found = []
    if isinstance(node, dict):
        if isinstance(node.get('type'), str) and path:
            found.append((path, node['type']))
        items = node.items()
    else:
        items = enumerate(node) if isinstance(node, (list, tuple)) else ()
    for name, child in items:
        found += _types(child, f'{path}.{name}' if path else str(name))
    return found


def _find(registry: Registry, name: str) -> bool:
    with _import_errors_named(name.rpartition('.')[0] or registry.scope):
        try:
            return registry.get(name) is not None
        except RuntimeError as error:
            if str(error).startswith('Failed to get'):  # MMEngine's words for an unknown name
                return False
            raise


@contextmanager
def _import_errors_named(package: str) -> Iterator[None]:
    """Registries import a package when they are first asked, which can fail in any way."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f'check_types: the modules of {package} cannot be imported: {type(error).__name__}: '
            f'{error}; see "mmlk doctor"'
        ) from error


def _names(registry: Registry, prefix: str) -> set[str]:
    """What can be written after ``prefix.``, or without one, where ``registry`` is asked."""
    if prefix:
        child = registry.root.children.get(prefix)
        return set(child.module_dict) if child else set()
    return set(registry.module_dict) | set(registry.root.module_dict)

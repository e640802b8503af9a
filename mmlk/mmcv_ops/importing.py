"""How ``import mmcv._ext`` is answered; this module loads neither torch nor mmcv."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from mmlk.import_hooks import call_after_execution

_EXTENSION = 'mmcv._ext'
_SUBSTITUTE = Path(__file__).with_name('extension.py')
_SWITCH = 'MMLK_MMCV_OPS'
# Operators that pool regions of a map. The first two arguments of each forward and backward are only
# read: the map or its gradient, and the regions (of deform_roi_pool's backward, both maps).
_POOLING = (
    'roi_align',
    'roi_align_rotated',
    'riroi_align_rotated',
    'roi_pool',
    'deform_roi_pool',
    'bezier_align',
    'border_align',
)


def source() -> str | None:
    """Where MMCV's operators come from in this process: ``'compiled'``, ``'torchvision'`` or None.

    Neither mmcv nor torchvision is imported.

    Raises:
        ValueError: If ``MMLK_MMCV_OPS`` is set to something else than ``torchvision``.
    """
    package = find_spec('mmcv')
    if package is None:
        return None
    return _source(package.submodule_search_locations)


def install() -> None:
    """Answer ``import mmcv._ext`` from here on; a module that is loaded already is only guarded.

    Raises:
        RuntimeError: If ``MMLK_MMCV_OPS`` asks for torchvision's operators after the compiled ones
            have been loaded.
    """
    if any(isinstance(finder, _ExtensionFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _ExtensionFinder())
    loaded = sys.modules.get(_EXTENSION)
    if loaded is not None:
        if _forced():
            raise RuntimeError(
                f'install: {_SWITCH}=torchvision, but the compiled operators of mmcv are loaded '
                'already; import mmlk before mmcv.ops'
            )
        _guard(loaded)
    elif 'mmdet.structures.mask' in sys.modules and source() != 'compiled':
        warnings.warn(
            'mmdet was imported before mmlk and has found no operators of mmcv: import mmlk first, '
            'or run the script as: python -m mmlk.run SCRIPT ARGUMENTS',
            stacklevel=2,
        )


def _forced() -> bool:
    value = os.environ.get(_SWITCH, '')
    if value not in ('', 'torchvision'):
        raise ValueError(f'{_SWITCH}={value!r}: the only value is torchvision; otherwise unset it')
    return value == 'torchvision'


def _source(path: list[str] | None) -> str | None:
    if _forced():
        return 'torchvision'
    if PathFinder.find_spec(_EXTENSION, path) is not None:
        return 'compiled'
    return 'torchvision' if find_spec('torchvision') is not None else None


class _ExtensionFinder(MetaPathFinder):
    """Finds the compiled operators and guards them, or else finds torchvision's."""

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname != _EXTENSION:
            return None
        found = _source(path)
        if found == 'torchvision':
            return spec_from_file_location(fullname, _SUBSTITUTE)
        if found is None:
            return None
        return call_after_execution(PathFinder.find_spec(fullname, path), _guard)


def _guard(extension: ModuleType) -> None:
    """Make the pooling operators of a compiled ``extension`` read maps and regions of any layout."""
    for name in (f'{pooling}_{way}' for pooling in _POOLING for way in ('forward', 'backward')):
        operator = getattr(extension, name, None)
        if operator is not None and not hasattr(operator, '__wrapped__'):
            setattr(extension, name, _reading_contiguous(operator))


def _reading_contiguous(operator):
    @functools.wraps(operator, assigned=('__name__', '__doc__'), updated=())
    def guarded(first, second, *others, **options):
        return operator(first.contiguous(), second.contiguous(), *others, **options)

    return guarded

"""Where the configs of this package live, and how other projects inherit from them.

A text config of another project writes ``_base_ = 'mmlk::upernet_inceptionnext_b_ade20k.py'``.
MMEngine resolves ``package::path`` only for a closed table of OpenMMLab packages, refuses names
without a folder, and stamps a scope on what it loads, which hides ``EncoderDecoder`` and every other
type of MMSegmentation and MMDetection from a plugin's config. :func:`install_config_resolver`
therefore answers ``mmlk::`` paths itself and leaves every other path to MMEngine.

Train scripts that never import this package can use the expression form, which MMEngine evaluates:
``_base_ = [__import__('mmlk').config_path('upernet_inceptionnext_b_ade20k.py')]``.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from mmlk import compat
from mmlk.import_hooks import call_after_execution

_PREFIX = 'mmlk::'
_CONFIG_MODULE = 'mmengine.config.config'


def config_root() -> Path:
    """Folder of the configs: inside the package for a wheel, beside it for a checkout.

    Raises:
        RuntimeError: If neither folder exists, that is, if the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / '.mim' / 'configs', package.parent / 'configs'):
        if (candidate / '_base_').is_dir():
            return candidate
    raise RuntimeError(f'mmlk: no configs found in or beside {package}; reinstall the package')


def config_path(name: str) -> str:
    """Absolute path of a config of this package.

    Args:
        name: File name relative to the config folder, with or without ``.py``, for example
            ``'upernet_inceptionnext_b_ade20k.py'`` or ``'_base_/models/upernet'``.

    Raises:
        ValueError: If there is no such config; the message lists the closest names.
    """
    root = config_root()
    path = root / (name if name.endswith('.py') else f'{name}.py')
    if path.is_file():
        return str(path)
    from difflib import get_close_matches

    known = sorted(found.relative_to(root).as_posix() for found in root.rglob('*.py'))
    close = get_close_matches(path.relative_to(root).as_posix(), known, n=5, cutoff=0.4) or known
    raise ValueError(f'mmlk.config_path: no config {name!r}; closest: {", ".join(close)}')


def install_config_resolver() -> None:
    """Teach MMEngine's ``Config`` the ``mmlk::`` prefix, now or as soon as it is imported."""
    if _CONFIG_MODULE in sys.modules:
        compat.wrap_config_resolver(sys.modules[_CONFIG_MODULE].Config, _with_our_configs)
    elif not any(isinstance(finder, _ConfigImportHook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ConfigImportHook())


class _ConfigImportHook(importlib.abc.MetaPathFinder):
    """Waits for MMEngine's config module, so that importing mmlk need not import torch."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _CONFIG_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        return spec and call_after_execution(
            spec, lambda module: compat.wrap_config_resolver(module.Config, _with_our_configs)
        )


def _with_our_configs(resolve: compat.ConfigResolver) -> compat.ConfigResolver:
    """``resolve`` that takes ``mmlk::name`` to our file, with no scope stamped on it."""

    def resolve_ours(path: str, filename: str) -> tuple[str, str | None]:
        if path.startswith(_PREFIX):
            return config_path(path[len(_PREFIX) :]), None
        return resolve(path, filename)

    return resolve_ours

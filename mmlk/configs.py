"""Where the configs of this package are, and how other projects inherit from them.

A text config of another project writes ``_base_ = 'mmlk::upernet_inceptionnext_b_ade20k.py'``.
MMEngine resolves ``package::path`` only for a closed table of OpenMMLab packages, refuses names
without a folder, and stamps a scope on what it loads, which hides ``EncoderDecoder`` and every other
type of MMSegmentation and MMDetection from a plugin's config. :func:`install_config_resolver`
therefore answers ``mmlk::`` paths itself and leaves every other path to MMEngine.

MMPretrain finds models by name in a hub, which :func:`install_config_resolver` extends by ours.

Train scripts that never import this package can use the expression form, which MMEngine evaluates:
``_base_ = [__import__('mmlk').config_path('upernet_inceptionnext_b_ade20k.py')]``.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

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
    """Teach MMEngine's ``Config`` the ``mmlk::`` prefix, and MMPretrain's hub our classifiers.

    Both happen now, or as soon as the module in question is imported.
    """
    waiting = {}
    for name, action in _ACTIONS.items():
        if name in sys.modules:
            action(sys.modules[name])
        else:
            waiting[name] = action
    if waiting and not any(isinstance(finder, _ImportHook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ImportHook(waiting))


class _ImportHook(importlib.abc.MetaPathFinder):
    """Waits for modules to act on, so that importing mmlk need not import torch."""

    def __init__(self, actions: dict[str, Callable[[ModuleType], None]]):
        self.actions = actions

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        action = self.actions.pop(fullname, None)
        if action is None:
            return None
        spec = importlib.util.find_spec(fullname)
        return spec and call_after_execution(spec, action)


def _with_our_configs(resolve: compat.ConfigResolver) -> compat.ConfigResolver:
    """``resolve`` that takes ``mmlk::name`` to our file, with no scope stamped on it."""

    def resolve_ours(path: str, filename: str) -> tuple[str, str | None]:
        if path.startswith(_PREFIX):
            return config_path(path[len(_PREFIX) :]), None
        return resolve(path, filename)

    return resolve_ours


def _add_classifiers(hub: Any) -> None:
    """Register the metafiles of our classifiers with MMPretrain's hub."""
    for path in sorted((config_root() / 'metafiles').glob('*_in1k.yml')):
        hub.register_model_index(path, config_prefix=config_root().parent)


_ACTIONS: dict[str, Callable[[ModuleType], None]] = {
    _CONFIG_MODULE: lambda module: compat.wrap_config_resolver(module.Config, _with_our_configs),
    'mmpretrain.apis.model': lambda module: compat.extend_model_hub(
        module.ModelHub, _add_classifiers
    ),
}

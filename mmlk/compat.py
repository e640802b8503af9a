"""Everything here that other packages may change without notice: one function for each such use.

A function names what it needs of the other package and the versions on which that was checked. Where
the need is not met it takes another way, or raises with versions and remedy. Importing this module
loads the standard library alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from mmengine.optim import OptimWrapper
    from mmengine.runner import Runner

# ---------------------------------------------------------------------------------------- MMEngine

MMENGINE = '0.10.4 to 0.10.12'
"""Versions of MMEngine, upstream's and OneDL's, on which the functions below were checked."""

COMPILE_OPERATORS = (
    'pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation --no-binary onedl-mmcv '
    'onedl-mmcv'
)
"""Compiles MMCV's operators: half an hour, and a C++ compiler. With build isolation, or from
the cache of such a build, the result has no operators, since the build did not see torch."""

ConfigResolver = Callable[[str, str], tuple[str, str | None]]
"""``(path in a config, file of that config) -> (path of the file, scope or None)``."""


def wrap_config_resolver(
    config_class: type, wrapper: Callable[[ConfigResolver], ConfigResolver]
) -> None:
    """Let ``wrapper`` change how ``config_class`` finds the files that ``_base_`` names, once.

    Needs ``Config._get_cfg_path``. Without it, paths are resolved as before and a warning says how a
    config inherits from this package all the same.

    Args:
        config_class: MMEngine's ``Config``.
        wrapper: Makes the new resolver of the present one.
    """
    resolver = getattr(config_class, '_get_cfg_path', None)
    if resolver is None:
        warnings.warn(
            f"mmlk: 'mmlk::' paths in _base_ do not work, since {_installed('mmengine')} has no "
            f'Config._get_cfg_path (checked on {MMENGINE}); write '
            "_base_ = [__import__('mmlk').config_path('NAME')]",
            RuntimeWarning,
        )
    elif not getattr(resolver, 'wrapped_by_mmlk', False):
        wrapped: Any = wrapper(resolver)
        wrapped.wrapped_by_mmlk = True
        config_class._get_cfg_path = staticmethod(wrapped)  # type: ignore[attr-defined]  # see above


def base_configs(config_class: type, file: Path) -> list[Path] | None:
    """Files that ``_base_`` of a config names; None for one in the pure-Python style, which has none.

    Needs ``Config._is_lazy_import``, ``_get_base_files`` and ``_get_cfg_path``.

    Args:
        config_class: MMEngine's ``Config``.
        file: The config.

    Raises:
        RuntimeError: If MMEngine no longer tells.
    """
    if _private(config_class, '_is_lazy_import')(str(file)):
        return None
    named = _private(config_class, '_get_base_files')(str(file))
    find = _private(config_class, '_get_cfg_path')
    return [
        Path(find(each, str(file))[0]) for each in ([named] if isinstance(named, str) else named)
    ]


def resumes(runner: Runner) -> bool:
    """Whether ``runner`` continues an earlier run. Needs ``Runner._resume``.

    Raises:
        RuntimeError: If MMEngine no longer tells.
    """
    return bool(_private(runner, '_resume'))


def accumulated_iterations(wrapper: OptimWrapper) -> int:
    """Iterations that one optimizer step sums up. Needs ``OptimWrapper._accumulative_counts``.

    Raises:
        RuntimeError: If MMEngine no longer tells.
    """
    return int(_private(wrapper, '_accumulative_counts'))


def _private(owner: object, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        kind = owner if isinstance(owner, type) else type(owner)
        raise RuntimeError(
            f'mmlk: {kind.__name__} of {_installed("mmengine")} has no {name!r}; '
            f'install a version that mmlk was checked on, {MMENGINE}'
        ) from None


def _installed(package: str) -> str:
    """Name and version of the distribution that provides ``package``."""
    for distribution in (f'onedl-{package}', package):
        try:
            return f'{distribution} {metadata.version(distribution)}'
        except metadata.PackageNotFoundError:
            continue
    return f'{package} of unknown version'


# ---------------------------------------------------------------------------- torch, torchvision


def storage_identity(tensor: torch.Tensor) -> int:
    """A number that tensors of one storage share and others do not, on meta as well.

    Needs ``UntypedStorage._cdata``, read on torch 2.4.0 and run on 2.11.0. The public address is 0 for
    all storages without memory.
    """
    return tensor.untyped_storage()._cdata


def roi_align_gradient(*arguments: Any) -> torch.Tensor:
    """Gradient of torchvision's RoIAlign for its map.

    Needs the operator ``torchvision::_roi_align_backward``, checked on torchvision 0.26.0.

    Args:
        arguments: Gradient, boxes, scale, height and width of a box, the four sizes of the map, sampling
            ratio, and whether boxes are aligned.

    Raises:
        RuntimeError: If torchvision has no such operator.
    """
    import torch

    try:
        operator = torch.ops.torchvision._roi_align_backward
    except AttributeError:
        raise RuntimeError(
            f'mmlk: {_installed("torchvision")} has no operator _roi_align_backward; install one that '
            f"mmlk was checked on, 0.26.0, or compile MMCV's operators: {COMPILE_OPERATORS}"
        ) from None
    return operator(*arguments)


# -------------------------------------------------------------------------------------- MMPretrain

MMPRETRAIN = '1.3.6'
"""Version of OneDL's MMPretrain on which the function below was checked."""


def extend_model_hub(hub: Any, register: Callable[[Any], None]) -> None:
    """Let ``register`` add models to MMPretrain's hub, once, when the hub reads its own.

    Needs ``ModelHub._register_mmpretrain_models``. Without it, models are registered at once, and the
    hub's own follow when it is asked.

    Args:
        hub: MMPretrain's ``ModelHub``.
        register: Called with the hub.
    """
    read_own = getattr(hub, '_register_mmpretrain_models', None)
    if read_own is None:
        register(hub)
        return
    waiting = [register]

    def read_all() -> None:
        read_own()
        while waiting:
            waiting.pop()(hub)

    hub._register_mmpretrain_models = staticmethod(read_all)


# ---------------------------------------------------------------------------------- MMSegmentation

MMSEGMENTATION = '1.4.2'
"""Version of OneDL's MMSegmentation on which the function below was checked."""


def selected_maps(head: Any, inputs: Sequence[torch.Tensor]) -> Any:
    """The maps that a decode head of MMSegmentation takes: one, or a list of them.

    Needs ``BaseDecodeHead._transform_inputs``, which reads ``in_index`` and ``input_transform``.

    Raises:
        RuntimeError: If the head no longer has it.
    """
    select = getattr(head, '_transform_inputs', None)
    if select is None:
        raise RuntimeError(
            f'mmlk: {type(head).__name__} of {_installed("mmsegmentation")} has no '
            f'_transform_inputs; install {MMSEGMENTATION}, or predict with --no-fold'
        )
    return select(inputs)

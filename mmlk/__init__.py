"""Large-kernel backbones and operators for the OpenMMLab stack.

Importing this package costs milliseconds: it loads neither torch nor mmengine. The registries fill
themselves when a config names a type with the ``mmlk.`` prefix, and ``mmlk::`` paths in a config's
``_base_`` resolve as soon as this package has been imported. So does the import of MMCV's operators
where none are compiled (`mmlk.mmcv_ops`).
"""

from importlib import import_module

from mmlk.configs import config_path, install_config_resolver
from mmlk.mmcv_ops import install as install_mmcv_operators

__version__ = '0.2.0'
_LAZY = {
    'accelerate': 'mmlk.surgery.acceleration',
    'convert': 'mmlk.surgery.conversion',
    'create_model': 'mmlk.models.create',
    'list_models': 'mmlk.models.names',
    'load_model': 'mmlk.inference.load',
    'restore': 'mmlk.surgery.acceleration',
}
__all__ = ['__version__', 'config_path', *_LAZY]

install_config_resolver()
install_mmcv_operators()


def __getattr__(name: str) -> object:
    """Import what needs torch when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_LAZY[name]), name)

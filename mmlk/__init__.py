"""Large-kernel backbones and operators for the OpenMMLab stack.

Importing this package costs milliseconds: it loads neither torch nor mmengine. The registries fill
themselves when a config names a type with the ``mmlk.`` prefix, and ``mmlk::`` paths in a config's
``_base_`` resolve as soon as this package has been imported.
"""

from mmlk.configs import config_path, install_config_resolver

__version__ = '0.2.0'
__all__ = ['__version__', 'config_path']

install_config_resolver()

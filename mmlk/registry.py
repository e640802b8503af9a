"""The registries of scope ``mmlk``; MMEngine imports this module when a type starts with ``mmlk.``.

Each registry is a child of MMEngine's root registry of the same purpose, so that
``type='mmlk.InceptionNeXt'`` builds under any default scope without ``custom_imports``.
"""

from mmengine import registry as _root

MODELS = _root.Registry('model', parent=_root.MODELS, scope='mmlk', locations=['mmlk.backbones'])
HOOKS = _root.Registry('hook', parent=_root.HOOKS, scope='mmlk', locations=['mmlk.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = _root.Registry(
    'optimizer wrapper constructor',
    parent=_root.OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmlk',
    locations=['mmlk.engine'],
)
TRANSFORMS = _root.Registry(
    'transform', parent=_root.TRANSFORMS, scope='mmlk', locations=['mmlk.data.transforms']
)

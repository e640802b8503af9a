"""The registries of scope ``mmlk``; MMEngine imports this module when a type starts with ``mmlk.``.

Each registry is a child of MMEngine's root registry of the same purpose, so that
``type='mmlk.InceptionNeXt'`` builds under any default scope without ``custom_imports``. MMEngine's
loader learns to read ``mmlk://<name>``, the published files that configs and metafiles name.
"""

import contextlib
from importlib import import_module

from mmengine import registry as _root
from mmengine.runner import CheckpointLoader

_LATE = {
    **dict.fromkeys(
        (
            'BatchNormLinearClsHead',
            'DistilledClassifier',
            'MlpClsHead',
            'NormLinearClsHead',
            'TwoBranchClsHead',
        ),
        'mmlk.classification',
    ),
    'ExportedNetwork': 'mmlk.inference.tested',
}
"""Models whose modules need a package that others do without."""


class _ModelRegistry(_root.Registry):
    """Imports what needs MMPretrain, or an exported file, when it is named, and not before.

    Segmentation and detection neither need that package nor wait for its import.
    """

    def get(self, key: str):
        name = key.rpartition('.')[2]
        if name in _LATE:
            import_module(_LATE[name])
        return super().get(key)


MODELS = _ModelRegistry('model', parent=_root.MODELS, scope='mmlk', locations=['mmlk.backbones'])
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


def _load_published(name: str, map_location: str | None = None, **_) -> dict:
    """A published file as MMEngine's loader returns it."""
    from mmlk.checkpoints.read import read_checkpoint

    return dict(state_dict=read_checkpoint(name, map_location=map_location or 'cpu')[0])


with contextlib.suppress(KeyError):  # the commands may have registered their reader already
    CheckpointLoader.register_scheme('mmlk://', _load_published)

"""ImageNet classification through MMPretrain; importing this needs it installed."""

import contextlib

from mmengine.runner import CheckpointLoader

from mmlk.checkpoints.read import read_checkpoint
from mmlk.checkpoints.zoo import SCHEME
from mmlk.classification.distillation import DistilledClassifier
from mmlk.classification.heads import MlpClsHead, NormLinearClsHead, TwoBranchClsHead

__all__ = ['DistilledClassifier', 'MlpClsHead', 'NormLinearClsHead', 'TwoBranchClsHead']


def _load(name: str, map_location: str | None = None, **_) -> dict:
    """A published file as MMEngine's loader returns it."""
    return dict(state_dict=read_checkpoint(name, map_location=map_location or 'cpu')[0])


# So that MMPretrain's get_model can load what a metafile names mmlk://<name>. The tools may have
# registered a reader for it already.
with contextlib.suppress(KeyError):
    CheckpointLoader.register_scheme(SCHEME, _load)

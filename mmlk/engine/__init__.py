"""Training parts that configs name after ``mmlk.``: hooks and optimizer constructors."""

from mmlk.engine.checkpoint import SafeCheckpointHook
from mmlk.engine.clip import AdaptiveClipHook
from mmlk.engine.dcls import DCLSClampHook, DCLSRepulsionHook
from mmlk.engine.finite_loss import FiniteLossHook
from mmlk.engine.layer_decay import LayerDecayConstructor
from mmlk.engine.pictures import PicturesHook
from mmlk.engine.single_image import SingleImageNormHook
from mmlk.engine.sparse import SparseMaskHook

__all__ = [
    'AdaptiveClipHook',
    'DCLSClampHook',
    'DCLSRepulsionHook',
    'FiniteLossHook',
    'LayerDecayConstructor',
    'PicturesHook',
    'SafeCheckpointHook',
    'SingleImageNormHook',
    'SparseMaskHook',
]

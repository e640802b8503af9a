"""Pieces that two or more backbones share."""

from mmlk.layers.drop import DropPath, drop_path_schedule
from mmlk.layers.fold import fold_norm_after, fold_norm_before, fold_scale_after, norm_affine
from mmlk.layers.mlp import ConvMlp
from mmlk.layers.norm import LayerNorm2d, build_norm
from mmlk.layers.recompute import recompute

__all__ = [
    'ConvMlp', 'DropPath', 'LayerNorm2d', 'build_norm', 'drop_path_schedule', 'fold_norm_after',
    'fold_norm_before', 'fold_scale_after', 'norm_affine', 'recompute'
]

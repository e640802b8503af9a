"""Pieces that two or more backbones share."""

from mmlk.layers.conv import GELU, ConvNorm, ExpandingDepthwiseConv2d, fold_conv_norms
from mmlk.layers.dilated import DilatedReparamConv2d
from mmlk.layers.drop import DropPath, drop_path_schedule
from mmlk.layers.fold import (
    fold_norm_after,
    fold_norm_before,
    fold_scale_after,
    has_affine_form,
    norm_affine,
)
from mmlk.layers.grn import GRNMlp, fold_grn_mlp
from mmlk.layers.inception import BRANCHES, PartialInceptionDWConv2d
from mmlk.layers.layout import channels_last_gradient
from mmlk.layers.linear import (
    FoldedLinear,
    FoldedPatchConv2d,
    FoldedPointwiseConv2d,
    fold_patches,
)
from mmlk.layers.mlp import (
    ConvMlp,
    ConvNormMlp,
    add_channel_mixer,
    add_conv_mlp,
    add_conv_norm_mlp,
    add_normed_mlp,
)
from mmlk.layers.norm import LayerNorm, LayerNorm2d, build_norm
from mmlk.layers.recattn import LinearAttention2d, RecAttn2d
from mmlk.layers.recompute import recompute

__all__ = [
    'BRANCHES',
    'ConvMlp',
    'ConvNorm',
    'ConvNormMlp',
    'DilatedReparamConv2d',
    'DropPath',
    'ExpandingDepthwiseConv2d',
    'FoldedLinear',
    'FoldedPatchConv2d',
    'FoldedPointwiseConv2d',
    'GELU',
    'GRNMlp',
    'LayerNorm',
    'LayerNorm2d',
    'LinearAttention2d',
    'PartialInceptionDWConv2d',
    'RecAttn2d',
    'add_channel_mixer',
    'add_conv_mlp',
    'add_conv_norm_mlp',
    'add_normed_mlp',
    'build_norm',
    'channels_last_gradient',
    'drop_path_schedule',
    'fold_conv_norms',
    'fold_grn_mlp',
    'fold_norm_after',
    'fold_norm_before',
    'fold_patches',
    'fold_scale_after',
    'has_affine_form',
    'norm_affine',
    'recompute',
]

"""The operators, usable with torch alone.

Every function has a ``backend`` argument (None chooses) and a twin ``*_reference`` in
`mmlk.ops.reference`, which is its definition. `explain` says which backend a call would use.

A folder holds one operator, and a file name answers one question:

- ``__init__``: what users call: the function, its checks, its module;
- ``schema``: the operator registered with PyTorch: shapes, gradient formula;
- ``cpu``: which CPU code for which shape;
- ``loops*``: compiled loops (`mmlk.ops.jit` has their language);
- ``cuda``: the way to the Triton kernels in ``triton*`` (`mmlk.ops.triton` has what they share).

``dense``, ``norm`` and ``blocks`` hold several operators each that share their loops.
"""

from mmlk.ops.blocks.attention import linear_attention2d
from mmlk.ops.blocks.conv_norm_mlp import conv_norm_mlp
from mmlk.ops.blocks.depthwise_sum import depthwise_sum
from mmlk.ops.dcls import cuda as _dcls_cuda
from mmlk.ops.dcls import dcls_kernel1d, dcls_kernel2d, dcls_kernel3d, repulsive_loss
from mmlk.ops.dcls import separable as _dcls_separable
from mmlk.ops.dcls.modules import DCLSConv1d, DCLSConv2d, DCLSConv3d, DCLSDepthwiseConv2d
from mmlk.ops.dense.channel_mlp import channel_mlp
from mmlk.ops.dense.folded_linear import folded_linear
from mmlk.ops.dense.patches import PatchConv2d, patch_conv2d
from mmlk.ops.dense.pointwise import PointwiseConv2d, pointwise_conv2d
from mmlk.ops.depthwise import DepthwiseConv2d, depthwise_conv2d
from mmlk.ops.depthwise import cpu as _depthwise_cpu
from mmlk.ops.depthwise import cuda as _depthwise_cuda
from mmlk.ops.depthwise.expanding import expanding_depthwise_conv2d
from mmlk.ops.dispatch import explain
from mmlk.ops.inception import InceptionDWConv2d, inception_dwconv2d
from mmlk.ops.inception import cpu as _inception_cpu
from mmlk.ops.inception import cuda as _inception_cuda
from mmlk.ops.large_kernel import cpu as _large_kernel_cpu
from mmlk.ops.large_kernel import cuda as _large_kernel_cuda
from mmlk.ops.large_kernel import large_kernel_branches, large_kernel_sum
from mmlk.ops.large_kernel.modules import LargeKernelDWConv2d
from mmlk.ops.large_kernel.normed import large_kernel_normed
from mmlk.ops.layout import contiguous_map
from mmlk.ops.layout import cpu as _layout_cpu
from mmlk.ops.norm.layer_norm import layer_norm
from mmlk.ops.recconv import RecConv2d, recconv2d
from mmlk.ops.recconv import cpu as _recconv_cpu
from mmlk.ops.recconv import cuda as _recconv_cuda
from mmlk.ops.reference import (
    channel_mlp_reference,
    contiguous_map_reference,
    conv_norm_mlp_reference,
    dcls_kernel1d_reference,
    dcls_kernel2d_reference,
    dcls_kernel3d_reference,
    depthwise_conv2d_reference,
    depthwise_sum_reference,
    expanding_depthwise_conv2d_reference,
    folded_linear_reference,
    inception_dwconv2d_reference,
    large_kernel_branches_reference,
    large_kernel_normed_reference,
    large_kernel_sum_reference,
    layer_norm_reference,
    linear_attention2d_reference,
    patch_conv2d_reference,
    pointwise_conv2d_reference,
    recconv2d_reference,
)

# Backends register themselves when imported, FLOP counts likewise.
from mmlk.ops import flops as _flops  # isort: skip

_REGISTERED = (
    _dcls_cuda,
    _dcls_separable,
    _depthwise_cpu,
    _depthwise_cuda,
    _inception_cpu,
    _inception_cuda,
    _large_kernel_cpu,
    _large_kernel_cuda,
    _layout_cpu,
    _recconv_cpu,
    _recconv_cuda,
    _flops,
)

__all__ = [
    'DCLSConv1d',
    'DCLSConv2d',
    'DCLSConv3d',
    'DCLSDepthwiseConv2d',
    'DepthwiseConv2d',
    'InceptionDWConv2d',
    'LargeKernelDWConv2d',
    'PatchConv2d',
    'PointwiseConv2d',
    'RecConv2d',
    'channel_mlp',
    'channel_mlp_reference',
    'contiguous_map',
    'contiguous_map_reference',
    'conv_norm_mlp',
    'conv_norm_mlp_reference',
    'dcls_kernel1d',
    'dcls_kernel1d_reference',
    'dcls_kernel2d',
    'dcls_kernel2d_reference',
    'dcls_kernel3d',
    'dcls_kernel3d_reference',
    'depthwise_conv2d',
    'depthwise_conv2d_reference',
    'depthwise_sum',
    'depthwise_sum_reference',
    'expanding_depthwise_conv2d',
    'expanding_depthwise_conv2d_reference',
    'explain',
    'folded_linear',
    'folded_linear_reference',
    'inception_dwconv2d',
    'inception_dwconv2d_reference',
    'large_kernel_branches',
    'large_kernel_branches_reference',
    'large_kernel_normed',
    'large_kernel_normed_reference',
    'large_kernel_sum',
    'large_kernel_sum_reference',
    'layer_norm',
    'layer_norm_reference',
    'linear_attention2d',
    'linear_attention2d_reference',
    'patch_conv2d',
    'patch_conv2d_reference',
    'pointwise_conv2d',
    'pointwise_conv2d_reference',
    'recconv2d',
    'recconv2d_reference',
    'repulsive_loss',
]

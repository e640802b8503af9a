"""The operators, usable with torch alone.

Every function has a ``backend`` argument (None chooses) and a twin ``*_reference`` in
`mmlk.ops.reference`, which is its definition. `explain` says which backend a call would use.
"""

from mmlk.ops import cpu as _cpu  # noqa: F401  registers the CPU backend
from mmlk.ops import cuda as _cuda  # noqa: F401  registers the CUDA backend
from mmlk.ops import dcls_cuda as _dcls_cuda  # noqa: F401  registers its CUDA backend
from mmlk.ops import flops as _flops  # noqa: F401  registers FLOP counts
from mmlk.ops import recconv_cpu as _recconv_cpu  # noqa: F401  registers the recursion
from mmlk.ops import recconv_cuda as _recconv_cuda  # noqa: F401  registers its CUDA backend
from mmlk.ops.branches import large_kernel_branches, large_kernel_sum
from mmlk.ops.channel_mlp import channel_mlp
from mmlk.ops.dcls import (
    DCLSConv1d,
    DCLSConv2d,
    DCLSConv3d,
    DCLSDepthwiseConv2d,
    dcls_kernel1d,
    dcls_kernel2d,
    dcls_kernel3d,
    repulsive_loss,
)
from mmlk.ops.depthwise import DepthwiseConv2d, depthwise_conv2d
from mmlk.ops.dispatch import explain
from mmlk.ops.inception import InceptionDWConv2d, inception_dwconv2d
from mmlk.ops.large_kernel import LargeKernelDWConv2d
from mmlk.ops.layer_norm import layer_norm
from mmlk.ops.patches import PatchConv2d, patch_conv2d
from mmlk.ops.pointwise import PointwiseConv2d, pointwise_conv2d
from mmlk.ops.recconv import RecConv2d, recconv2d
from mmlk.ops.reference import (
    channel_mlp_reference,
    dcls_kernel1d_reference,
    dcls_kernel2d_reference,
    dcls_kernel3d_reference,
    depthwise_conv2d_reference,
    inception_dwconv2d_reference,
    large_kernel_branches_reference,
    large_kernel_sum_reference,
    layer_norm_reference,
    patch_conv2d_reference,
    pointwise_conv2d_reference,
    recconv2d_reference,
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
    'dcls_kernel1d',
    'dcls_kernel1d_reference',
    'dcls_kernel2d',
    'dcls_kernel2d_reference',
    'dcls_kernel3d',
    'dcls_kernel3d_reference',
    'depthwise_conv2d',
    'depthwise_conv2d_reference',
    'explain',
    'inception_dwconv2d',
    'inception_dwconv2d_reference',
    'large_kernel_branches',
    'large_kernel_branches_reference',
    'large_kernel_sum',
    'large_kernel_sum_reference',
    'layer_norm',
    'layer_norm_reference',
    'patch_conv2d',
    'patch_conv2d_reference',
    'pointwise_conv2d',
    'pointwise_conv2d_reference',
    'recconv2d',
    'recconv2d_reference',
    'repulsive_loss',
]

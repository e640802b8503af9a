"""The operators, usable with torch alone.

Every function has a ``backend`` argument (None chooses) and a twin ``*_reference`` in
`mmlk.ops.reference`, which is its definition. `explain` says which backend a call would use.
"""

from mmlk.ops import cpu as _cpu  # noqa: F401  registers the CPU backend
from mmlk.ops.depthwise import depthwise_conv2d
from mmlk.ops.dispatch import explain
from mmlk.ops.inception import InceptionDWConv2d, inception_dwconv2d
from mmlk.ops.large_kernel import LargeKernelDWConv2d
from mmlk.ops.reference import depthwise_conv2d_reference, inception_dwconv2d_reference

__all__ = [
    'InceptionDWConv2d',
    'LargeKernelDWConv2d',
    'depthwise_conv2d',
    'depthwise_conv2d_reference',
    'explain',
    'inception_dwconv2d',
    'inception_dwconv2d_reference',
]

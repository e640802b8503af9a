"""What runs in the interpreter's process: poisoned memory, and comparisons with float64."""

import torch

from mmlk.ops import reference
from tests.cases import TOLERANCE, assert_close
from tests.ops.helpers import LAYOUTS


def prepare() -> None:
    """Fills what `torch.empty*` returns with NaN, in one thread with fixed seeds."""
    torch.set_num_threads(1)
    for owner, name in ((torch, 'empty'), (torch, 'empty_like'), (torch, 'empty_strided'),
                        (torch.Tensor, 'new_empty')):
        setattr(owner, name, _poisoned(getattr(owner, name)))


def _poisoned(allocate):
    def call(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(float('nan')) if tensor.is_floating_point() else tensor

    return call


def check_forward(shape, kernel, stride, layout, dtype):
    """The Triton launcher of the forward pass against the reference in float64."""
    from mmlk.ops.triton import depthwise

    torch.manual_seed(0)
    x = LAYOUTS[layout](shape, dtype)
    weight, bias = torch.randn(shape[1], 1, *kernel), torch.randn(shape[1])
    stride = reference.pair(stride)
    got = depthwise.forward(x, weight, bias, stride)
    want = reference.depthwise_conv2d_reference(
        x.double(), weight.double(), bias.double(), stride)
    assert got.dtype == dtype
    assert_close('y', got, want, TOLERANCE[dtype][0])

"""FLOP counts equal closed forms and those of plain convolutions."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmlk.ops import InceptionDWConv2d, depthwise_conv2d


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize('kernel,stride', [((7, 7), 1), ((51, 5), 1), ((5, 5), 2)])
def test_depthwise_forward_and_backward(kernel, stride):
    x = torch.randn(2, 6, 20, 18, requires_grad=True)
    weight = torch.randn(6, 1, *kernel, requires_grad=True)
    taps = kernel[0] * kernel[1]
    once = 2 * 2 * 6 * (20 // stride) * (18 // stride) * taps
    y = depthwise_conv2d(x, weight, None, stride)
    assert counted(lambda: depthwise_conv2d(x, weight, None, stride)) == once
    assert counted(lambda: depthwise_conv2d(x, weight, None, stride, backend='reference')) == once
    assert counted(lambda: y.sum().backward()) == 2 * once


def test_inception_forward_and_backward():
    module, x = InceptionDWConv2d(32), torch.randn(1, 32, 12, 10, requires_grad=True)
    once = 2 * 4 * 120 * (9 + 11 + 11)
    hw, w, h = module.dwconv_hw, module.dwconv_w, module.dwconv_h
    arguments = (x, hw.weight, hw.bias, w.weight, w.bias, h.weight, h.bias)
    y = torch.ops.mmlk.inception_dwconv2d(*arguments)
    assert counted(lambda: module(x)) == once
    assert counted(lambda: torch.ops.mmlk.inception_dwconv2d(*arguments)) == once
    # torch's own formula for the gradients of grouped convolutions counts too many.
    assert counted(lambda: y.sum().backward()) == 2 * once


def test_mmengine_counts_the_same():
    analysis = pytest.importorskip('mmengine.analysis')
    module, x = InceptionDWConv2d(32).eval(), torch.randn(1, 32, 12, 10)
    counter = analysis.FlopAnalyzer(module, x).unsupported_ops_warnings(False)
    assert counter.total() == 4 * 120 * (9 + 11 + 11)

"""The definitions against sums written out tap by tap in float64."""

import pytest
import torch

from mmlk.ops import depthwise_conv2d_reference, inception_dwconv2d_reference
from tests.cases import DEPTHWISE_CASES, TOLERANCE, assert_close


def tap_by_tap(x, weight, bias, stride):
    """Sum over taps of shifted copies of the map."""
    n, c, h, w = x.shape
    kh, kw = weight.shape[2:]
    padded = torch.zeros(n, c, h + kh - 1, w + kw - 1, dtype=x.dtype)
    padded[:, :, kh // 2 : kh // 2 + h, kw // 2 : kw // 2 + w] = x
    y = bias.view(1, c, 1, 1).expand(n, c, h, w).clone()
    for i in range(kh):
        for j in range(kw):
            y += weight[:, 0, i, j].view(1, c, 1, 1) * padded[:, :, i : i + h, j : j + w]
    return y[:, :, :: stride[0], :: stride[1]]


@pytest.mark.parametrize('case', DEPTHWISE_CASES)
def test_depthwise_is_the_sum_over_taps(case):
    shape, kernel, stride = DEPTHWISE_CASES[case]
    x = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(shape[1], 1, *kernel, dtype=torch.float64)
    bias = torch.randn(shape[1], dtype=torch.float64)
    got = depthwise_conv2d_reference(x, weight, bias, stride)
    pair = torch.broadcast_to(torch.tensor(stride), (2,)).tolist()
    assert_close('y', got, tap_by_tap(x, weight, bias, pair), TOLERANCE[torch.float64][0])


def one_dense_kernel(channels, parameters):
    """The Inception operator as one depthwise kernel and bias: identity is a centre of 1."""
    hw, bias_hw, w, bias_w, h, bias_h = parameters
    g, middle = hw.shape[0], w.shape[3] // 2
    side = w.shape[3]
    dense, bias = torch.zeros(channels, 1, side, side, dtype=hw.dtype), hw.new_zeros(channels)
    square = slice(middle - hw.shape[2] // 2, middle + hw.shape[2] // 2 + 1)
    dense[: channels - 3 * g, 0, middle, middle] = 1
    dense[channels - 3 * g : channels - 2 * g, 0, square, square] = hw[:, 0]
    dense[channels - 2 * g : channels - g, 0, middle] = w[:, 0, 0]
    dense[channels - g :, 0, :, middle] = h[:, 0, :, 0]
    bias[channels - 3 * g :] = torch.cat((bias_hw, bias_w, bias_h))
    return dense, bias


@pytest.mark.parametrize('channels,branch,size', [(12, 2, (9, 8)), (9, 3, (4, 3)), (7, 1, (1, 1))])
def test_inception_is_one_dense_convolution(channels, branch, size):
    g = branch
    parameters = [
        torch.randn(each, dtype=torch.float64)
        for each in ((g, 1, 3, 3), (g,), (g, 1, 1, 11), (g,), (g, 1, 11, 1), (g,))
    ]
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    got = inception_dwconv2d_reference(x, *parameters)
    want = tap_by_tap(x, *one_dense_kernel(channels, parameters), (1, 1))
    assert_close('y', got, want, TOLERANCE[torch.float64][0])

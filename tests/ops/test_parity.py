"""The CPU backend against the reference in float64 of the same values: output, every gradient.

Everything is done twice, with compiled loops where they can be and with the routes of torch alone.
"""

import pytest
import torch

from mmlk.ops import (
    InceptionDWConv2d,
    depthwise_conv2d,
    depthwise_conv2d_reference,
    inception_dwconv2d,
    inception_dwconv2d_reference,
)
from tests.cases import DEPTHWISE_CASES, TOLERANCE, assert_close
from tests.ops.helpers import LAYOUTS, double, leaf, outputs_and_gradients


@pytest.fixture(autouse=True, params=['compiled', 'torch'])
def _routes(request, monkeypatch):
    monkeypatch.setenv('MMLK_JIT', '1' if request.param == 'compiled' else '0')


NAMES = ('y', 'grad_x', 'grad_weight', 'grad_bias')


def check_depthwise(x, weight, bias, stride, cotangent=None):
    shape = depthwise_conv2d_reference(x, weight, bias, stride).shape
    cotangent = torch.randn(shape, dtype=x.dtype) if cotangent is None else cotangent
    got = outputs_and_gradients(
        lambda *args: depthwise_conv2d(*args, stride, backend='cpu'),
        [leaf(x), leaf(weight), leaf(bias)],
        cotangent,
    )
    want = outputs_and_gradients(
        lambda *args: depthwise_conv2d_reference(*args, stride),
        [double(x), double(weight), double(bias)],
        cotangent,
    )
    outputs, parameters = TOLERANCE[x.dtype]
    for name, mine, theirs, tolerance in zip(
        NAMES, got, want, (outputs, outputs, parameters, parameters)
    ):
        assert mine.dtype == x.dtype
        assert_close(name, mine, theirs, tolerance)
    return got


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('case', DEPTHWISE_CASES)
def test_depthwise_equals_reference(case, layout):
    shape, kernel, stride = DEPTHWISE_CASES[case]
    weight, bias = torch.randn(shape[1], 1, *kernel), torch.randn(shape[1])
    check_depthwise(LAYOUTS[layout](shape), weight, bias, stride)


@pytest.mark.parametrize('layout', sorted(set(LAYOUTS) - {'contiguous', 'channels_last'}))
@pytest.mark.parametrize('case', ['k3', 'k5-stride2', 'k7', 'k17-large-map', 'k5x51'])
def test_depthwise_takes_maps_of_any_strides(case, layout):
    shape, kernel, stride = DEPTHWISE_CASES[case]
    weight, bias = torch.randn(shape[1], 1, *kernel), torch.randn(shape[1])
    check_depthwise(LAYOUTS[layout](shape), weight, bias, stride)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('case', ['k3', 'k5-stride2', 'k7', 'k1x11', 'k17', 'k51x5-clipped', 'k31'])
def test_depthwise_equals_reference_in_other_dtypes(case, layout, dtype):
    shape, kernel, stride = DEPTHWISE_CASES[case]
    weight = torch.randn(shape[1], 1, *kernel).to(dtype)
    bias = torch.randn(shape[1]).to(dtype)
    check_depthwise(LAYOUTS[layout](shape, dtype), weight, bias, stride)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_depthwise_takes_cotangents_of_any_strides(layout):
    shape, kernel, stride = DEPTHWISE_CASES['k7']
    x, weight, bias = torch.randn(shape), torch.randn(shape[1], 1, *kernel), torch.randn(shape[1])
    check_depthwise(x, weight, bias, stride, LAYOUTS[layout](shape))


@pytest.mark.parametrize(
    'layout,expected',
    [
        ('contiguous', torch.contiguous_format),
        ('channels_last', torch.channels_last),
        ('channel_slice', torch.contiguous_format),
        ('channels_last_slice', torch.channels_last),
    ],
)
@pytest.mark.parametrize('case', ['k3', 'k5-stride2', 'k7', 'k17', 'k51x5', 'k5x51', 'k31'])
def test_layout_is_that_of_the_input_whatever_the_weight_is(case, layout, expected):
    shape, kernel, stride = DEPTHWISE_CASES[case]
    x = leaf(LAYOUTS[layout](shape))
    weight = leaf(torch.randn(shape[1], 1, *kernel).to(memory_format=torch.channels_last))
    y = depthwise_conv2d(x, weight, None, stride)
    (grad_x,) = torch.autograd.grad(y.sum(), x)
    assert y.is_contiguous(memory_format=expected)
    assert grad_x.is_contiguous(memory_format=expected)


@pytest.mark.parametrize(
    'layout,expected',
    [
        ('contiguous', torch.contiguous_format),
        ('channels_last', torch.channels_last),
        ('channels_last_slice', torch.channels_last),
    ],
)
def test_layout_of_the_inception_operator_is_that_of_its_input(layout, expected):
    module, x = InceptionDWConv2d(24), leaf(LAYOUTS[layout]((2, 24, 15, 13)))
    y = module(x)
    (grad_x,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert y.is_contiguous(memory_format=expected)
    assert grad_x.is_contiguous(memory_format=expected)


@pytest.mark.parametrize('wanted', [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)], ids=str)
@pytest.mark.parametrize('case', ['k7', 'k17-large-map'])
def test_gradients_on_demand(case, wanted):
    shape, kernel, stride = DEPTHWISE_CASES[case]
    tensors = [torch.randn(shape), torch.randn(shape[1], 1, *kernel), torch.randn(shape[1])]
    every = [leaf(each) for each in tensors]
    some = [each.clone().requires_grad_(bool(want)) for each, want in zip(tensors, wanted)]
    chosen = [index for index, want in enumerate(wanted) if want]
    all_grads = torch.autograd.grad(depthwise_conv2d(*every).sum(), every)
    got = torch.autograd.grad(depthwise_conv2d(*some).sum(), [some[index] for index in chosen])
    for index, grad in zip(chosen, got):
        assert_close(NAMES[index + 1], grad, all_grads[index], TOLERANCE[torch.float32][1])


# channels, branch channels, square side, band length, N, map
INCEPTION_CASES = {
    'default': (24, 3, 3, 11, (2, 17, 13)),
    'no-identity': (12, 4, 3, 11, (1, 9, 8)),
    'wide-square': (20, 2, 5, 13, (2, 30, 31)),
    'map-below-kernel': (16, 2, 3, 11, (2, 3, 5)),
    'pixel': (8, 1, 3, 11, (3, 1, 1)),
    'eight-per-branch': (64, 8, 3, 11, (1, 28, 28)),
}


@pytest.mark.parametrize(
    'function',
    [inception_dwconv2d, torch.ops.mmlk.inception_dwconv2d],
    ids=['public', 'registered'],
)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'channels_last_slice'])
@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('case', INCEPTION_CASES)
def test_inception_equals_reference(case, dtype, layout, function):
    channels, g, square, band, (n, h, w) = INCEPTION_CASES[case]
    x = LAYOUTS[layout]((n, channels, h, w), dtype)
    parameters = [
        torch.randn(shape).to(dtype)
        for shape in ((g, 1, square, square), (g,), (g, 1, 1, band), (g,), (g, 1, band, 1), (g,))
    ]
    cotangent = torch.randn(x.shape).to(dtype)
    got = outputs_and_gradients(function, [leaf(each) for each in (x, *parameters)], cotangent)
    want = outputs_and_gradients(
        inception_dwconv2d_reference, [double(each) for each in (x, *parameters)], cotangent
    )
    for index, (mine, theirs) in enumerate(zip(got, want)):
        assert mine.dtype == dtype
        assert_close(f'result {index}', mine, theirs, TOLERANCE[dtype][index > 1])


def test_batch_of_none():
    x, weight = leaf(torch.randn(0, 4, 9, 9)), leaf(torch.randn(4, 1, 17, 17))
    y = depthwise_conv2d(x, weight)
    y.sum().backward()
    assert y.shape == x.shape
    assert not weight.grad.any()

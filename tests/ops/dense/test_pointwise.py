"""1x1 convolution as a matrix product, against torch's convolution in float64."""

import pytest
import torch
import torch.nn.functional as F

from mmlk.ops import PointwiseConv2d, explain, pointwise_conv2d
from tests.cases import TOLERANCE, assert_close
from tests.golden_weights import golden_input


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('size', [(1, 1), (7, 5)])
def test_module_equals_a_convolution_in_float64(size, bias, groups, layout):
    module = PointwiseConv2d(6, 8, 1, groups=groups, bias=bias)
    x = golden_input((2, 6, *size)).contiguous(memory_format=layout).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    copies = [p.detach().double().requires_grad_() for p in module.parameters()]
    y, want = module(x), F.conv2d(x64, *copies, groups=groups)
    cotangent = golden_input(y.shape, seed=1)
    got = torch.autograd.grad(y, [x, *module.parameters()], cotangent)
    expected = torch.autograd.grad(want, [x64, *copies], cotangent.double())
    assert y.is_contiguous(memory_format=layout)
    assert_close('output', y, want, TOLERANCE[torch.float32][0])
    for a, b in zip(got, expected, strict=True):
        assert_close('gradient', a, b, TOLERANCE[torch.float32][1])


def test_product_is_taken_for_channels_last_maps_only():
    x, weight = golden_input((1, 4, 5, 5)), torch.ones(3, 4, 1, 1)
    last = x.contiguous(memory_format=torch.channels_last)
    assert 'the map is not channels-last' in explain('pointwise_conv2d', x, weight)
    assert explain('pointwise_conv2d', last, weight).startswith('cpu: used')


def test_exported_graph_holds_a_convolution():
    module = PointwiseConv2d(4, 6, 1)
    x = golden_input((1, 4, 5, 5)).contiguous(memory_format=torch.channels_last)
    graph = torch.export.export(module, (x,)).graph
    called = [str(node.target) for node in graph.nodes if node.op == 'call_function']
    assert called == ['aten.conv2d.default']


@pytest.mark.parametrize('shape', [(3, 4, 3, 3), (3, 5, 1, 1)])
def test_kernel_that_does_not_fit_is_named(shape):
    with pytest.raises(ValueError, match=r'pointwise_conv2d: x \(1, 4, 5, 5\) and weight'):
        pointwise_conv2d(torch.zeros(1, 4, 5, 5), torch.zeros(shape))

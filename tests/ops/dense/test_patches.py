"""Convolution of patches as a product, against torch's convolution in float64."""

import pytest
import torch
import torch.nn.functional as F

from mmlk.ops import PatchConv2d, explain, patch_conv2d
from tests.cases import GRADCHECK, TOLERANCE, assert_close
from tests.ops.helpers import LAYOUTS, leaf, outputs_and_gradients


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('weight_layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(('size', 'patch'), [((6, 8), 2), ((7, 5), 2), ((9, 4), 4), ((2, 3), 2)])
def test_module_equals_a_convolution_in_float64(size, patch, weight_layout, layout):
    module = PatchConv2d(5, 7, patch, patch).to(memory_format=weight_layout)
    x = leaf(LAYOUTS[layout]((2, 5, *size)))
    copies = [each.detach().double().requires_grad_() for each in (x, *module.parameters())]
    want = F.conv2d(*copies, stride=patch)
    cotangent = torch.randn(want.shape)
    got = outputs_and_gradients(lambda *_: module(x), [x, *module.parameters()], cotangent)
    wanted = [want, *torch.autograd.grad(want, copies, cotangent.double())]
    for index, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert_close(f'tensor {index}', a, b, TOLERANCE[torch.float32][1])
    with torch.no_grad():
        assert_close('inference', module(x), want, TOLERANCE[torch.float32][0])


@pytest.mark.parametrize('form', [torch.contiguous_format, torch.channels_last])
def test_the_layout_of_the_map_is_kept(form):
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=form)
    assert PatchConv2d(4, 3, 2, 2)(x).is_contiguous(memory_format=form)


def test_gradcheck():
    tensors = [
        torch.randn(shape, dtype=torch.float64) for shape in ((1, 2, 5, 4), (3, 2, 2, 2), (3,))
    ]
    assert torch.autograd.gradcheck(
        lambda *args: patch_conv2d(*args, backend='cpu'),
        [leaf(each) for each in tensors],
        **GRADCHECK,
    )


def test_compiled_exported_and_watched_calls_are_convolutions():
    module, x = PatchConv2d(4, 3, 2, 2), torch.randn(1, 4, 5, 6)
    torch._dynamo.reset()
    assert_close(
        'compiled', torch.compile(module, fullgraph=True)(x), module(x), TOLERANCE[torch.float32][0]
    )
    graph = torch.export.export(module, (x,)).graph
    called = [str(node.target) for node in graph.nodes if node.op == 'call_function']
    assert called == ['aten.conv2d.default']
    with torch.autocast('cpu', torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
    assert 'holds no patch' in explain('patch_conv2d', x[:, :, :1], module.weight, module.bias)


def test_channels_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r'patch_conv2d: x \(1, 4, 5, 6\) and weight'):
        patch_conv2d(torch.zeros(1, 4, 5, 6), torch.zeros(3, 5, 2, 2))

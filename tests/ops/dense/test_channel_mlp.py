"""The channel mixer and its products against plain layers in float64."""

import pytest
import torch
from torch import nn

from mmlk.ops import channel_mlp, channel_mlp_reference, explain
from mmlk.ops.dense import products
from tests.cases import GRADCHECK, TOLERANCE, assert_close
from tests.ops.helpers import double, leaf, outputs_and_gradients

# Rows on both sides of the switch in the order of the weight gradient, widths that are no multiples
# of a vector, outputs wider and narrower than the input.
SHAPES = [
    ((2, 5, 3, 13), 52, 13),
    ((700, 9), 31, 9),
    ((700, 31), 9, 12),
    ((1, 249), 7, 3),
    ((7,), 5, 6),
]


def parameters(channels, hidden, outputs, dtype=torch.float32):
    shapes = ((hidden, channels), (hidden,), (outputs, hidden), (outputs,), (outputs,))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize('scaled', [True, False])
@pytest.mark.parametrize(('shape', 'hidden', 'outputs'), SHAPES)
def test_output_and_gradients_equal_the_definition_in_float64(shape, hidden, outputs, scaled):
    tensors = [torch.randn(shape), *parameters(shape[-1], hidden, outputs)][: 6 if scaled else 5]
    tensors = [leaf(each) for each in tensors]
    wanted = [double(each) for each in tensors]
    cotangent = torch.randn(*shape[:-1], outputs)
    got = outputs_and_gradients(lambda *args: channel_mlp(*args, backend='cpu'), tensors, cotangent)
    want = outputs_and_gradients(channel_mlp_reference, wanted, cotangent)
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(f'tensor {index}', a, b, TOLERANCE[torch.float32][1])
        assert a.is_contiguous()
    with torch.no_grad():
        assert_close('inference', channel_mlp(*tensors), want[0], TOLERANCE[torch.float32][0])


@pytest.mark.parametrize('scaled', [True, False])
@pytest.mark.parametrize(('shape', 'hidden', 'outputs'), SHAPES)
def test_compiled_products_of_any_size(monkeypatch, shape, hidden, outputs, scaled):
    monkeypatch.setattr(products, 'MANY_ROWS', 1)
    monkeypatch.setattr(products, 'MANY_PRODUCTS', 1)
    test_output_and_gradients_equal_the_definition_in_float64(shape, hidden, outputs, scaled)


def test_a_strided_map_and_a_strided_gradient():
    tensors = [leaf(torch.randn(2, 6, 5, 4)), *map(leaf, parameters(6, 10, 6))]
    wanted = [double(each) for each in tensors]
    cotangent = torch.randn(2, 6, 5, 4)

    def on_pixels(function):
        return lambda x, *rest: function(x.permute(0, 2, 3, 1), *rest).permute(0, 3, 1, 2)

    got = outputs_and_gradients(on_pixels(channel_mlp), tensors, cotangent)
    want = outputs_and_gradients(on_pixels(channel_mlp_reference), wanted, cotangent)
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(f'tensor {index}', a, b, TOLERANCE[torch.float32][1])


def test_gradcheck():
    tensors = [torch.randn(3, 4, dtype=torch.float64), *parameters(4, 5, 3, torch.float64)]
    assert torch.autograd.gradcheck(
        lambda *args: channel_mlp(*args, backend='cpu'),
        [leaf(each) for each in tensors],
        **GRADCHECK,
    )


@pytest.mark.parametrize('frozen', range(6))
def test_what_wants_no_gradient_gets_none(frozen):
    tensors = [leaf(torch.randn(3, 4)), *map(leaf, parameters(4, 5, 3))]
    tensors[frozen].requires_grad_(False)
    channel_mlp(*tensors).sum().backward()
    assert [each.grad is None for each in tensors] == [index == frozen for index in range(6)]


def test_products_without_onednn(monkeypatch):
    monkeypatch.setattr(products, 'can_use_onednn', lambda x: False)
    test_output_and_gradients_equal_the_definition_in_float64(*SHAPES[0], True)


@pytest.mark.parametrize('low', [torch.bfloat16, torch.float16], ids=str)
def test_autocast_and_low_precision_take_the_plain_layers(low):
    tensors = [torch.randn(3, 4), *parameters(4, 5, 3)]
    with torch.autocast('cpu', low):
        assert 'autocast is on' in explain('channel_mlp', *tensors)
        assert channel_mlp(*tensors[:-1]).dtype == low
    lower = [each.to(low) for each in tensors]
    assert f'cpu: not used, the input is {low}' in explain('channel_mlp', *lower)
    assert 'another dtype' in explain('channel_mlp', tensors[0].double(), *tensors[1:])


def test_compiled_exported_and_transformed_calls_take_the_plain_layers():
    tensors = [torch.randn(3, 4), *parameters(4, 5, 3)]
    want = channel_mlp_reference(*tensors)
    torch._dynamo.reset()
    compiled = torch.compile(channel_mlp, fullgraph=True)(*tensors)
    assert_close('compiled', compiled, want, TOLERANCE[torch.float32][0])
    mapped = torch.func.vmap(channel_mlp, (0, *(None,) * 5))(*tensors)
    assert_close('vmap', mapped, want, TOLERANCE[torch.float32][0])

    class Mixer(nn.Module):
        def forward(self, *args):
            return channel_mlp(*args)

    graph = torch.export.export(Mixer(), tuple(tensors)).graph
    called = [str(node.target) for node in graph.nodes if node.op == 'call_function']
    assert called == [
        'aten.linear.default',
        'aten.gelu.default',
        'aten.linear.default',
        'aten.mul.Tensor',
    ]


def test_second_derivatives_are_refused_and_the_reference_has_them():
    tensors = [leaf(torch.randn(3, 4)), *map(leaf, parameters(4, 5, 3))]
    (first,) = torch.autograd.grad(channel_mlp(*tensors).sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match='channel_mlp: second derivatives are not'):
        first.sum().backward()
    y = channel_mlp(*tensors, backend='reference').sum()
    (first,) = torch.autograd.grad(y, tensors[0], create_graph=True)
    first.sum().backward()
    assert tensors[1].grad.abs().sum() > 0


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r'channel_mlp: x \(3, 5\), weight1 \(5, 4\)'):
        channel_mlp(torch.zeros(3, 5), *parameters(4, 5, 3))

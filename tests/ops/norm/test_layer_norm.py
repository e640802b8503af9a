"""Layer norm against its definition in float64."""

import pytest
import torch
from torch import nn

from mmlk.layers import LayerNorm, LayerNorm2d
from mmlk.ops import explain, jit, layer_norm, layer_norm_reference
from mmlk.ops.norm import loops_layer_norm as compiled
from tests.cases import TOLERANCE, assert_close
from tests.ops.helpers import double, leaf, outputs_and_gradients

OUTPUT, PARAMETER = TOLERANCE[torch.float32]
compiles = pytest.mark.skipif(jit.refusal() is not None, reason=str(jit.refusal()))
# Whole vectors, every kind of remainder, and many tasks.
SHAPES = [(1, 16), (3, 17), (2, 5, 3, 31), (40, 96), (3000, 33), (9, 1000)]


@compiles
@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_output_and_gradients_equal_the_definition_in_float64(shape, affine):
    tensors = [leaf(3 * torch.randn(shape) + 5)]
    if affine:
        tensors += [leaf(torch.randn(shape[-1])) for _ in range(2)]
    cotangent = torch.randn(shape)
    got = outputs_and_gradients(
        lambda *args: layer_norm(*args, eps=1e-6, backend='cpu'), tensors, cotangent
    )
    want = outputs_and_gradients(
        lambda *args: layer_norm_reference(*args, eps=1e-6),
        [double(each) for each in tensors],
        cotangent,
    )
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(f'tensor {index}', a, b, PARAMETER)
    with torch.no_grad():
        assert_close('inference', layer_norm(*tensors, eps=1e-6), want[0], OUTPUT)


@compiles
def test_a_mean_far_from_zero_keeps_its_digits():
    x = torch.randn(5, 100) + 1000.0
    assert_close('output', layer_norm(x), layer_norm_reference(x.double()), 1e3 * OUTPUT)


@compiles
def test_the_same_on_any_number_of_threads():
    x, weight, bias, grad = (
        torch.randn(999, 70),
        torch.randn(70),
        torch.randn(70),
        torch.randn(999, 70),
    )
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y, *statistics = compiled.forward(x, weight, bias, 1e-6, keep=True)
            found.append((y, *compiled.backward(grad, x, weight, *statistics)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*found))


@compiles
def test_rows_that_end_with_their_memory():
    x, weight = torch.randn(3, 37), torch.randn(37)
    memory = torch.full((3 * 37 + 64,), float('nan'))
    held = memory[: 3 * 37].view(3, 37)
    held.copy_(x)
    assert torch.equal(layer_norm(held, weight, weight), layer_norm(x, weight, weight))


@pytest.mark.parametrize('setting', ['0', '1'])
@pytest.mark.parametrize('last', [True, False])
def test_modules(monkeypatch, setting, last):
    monkeypatch.setenv('MMLK_JIT', setting)
    x = torch.randn(2, 24, 5, 6)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    norm, plain = LayerNorm2d(24), nn.LayerNorm(24, eps=1e-6)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    plain.load_state_dict(norm.state_dict())
    want = plain(x.permute(0, 2, 3, 1))
    got = norm(x)
    assert_close('map', got.permute(0, 2, 3, 1), want, OUTPUT)
    assert got.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    rows = LayerNorm(24, eps=1e-6)
    rows.load_state_dict(norm.state_dict())
    assert_close('rows', rows(x.permute(0, 2, 3, 1)), want, OUTPUT)


def test_what_it_leaves_to_torch():
    x, weight = torch.randn(3, 20), torch.randn(20)
    assert 'shorter than a vector' in explain('layer_norm', torch.randn(3, 8)) or jit.refusal()
    assert 'cpu: not used' in explain('layer_norm', x.double())
    assert 'cpu: not used' in explain('layer_norm', x, weight)
    assert 'cpu: not used' in explain('layer_norm', x, weight.to('meta'), weight)
    with torch.autocast('cpu', torch.bfloat16):
        assert 'cpu: not used' in explain('layer_norm', x)
    assert layer_norm(torch.zeros(0, 20)).shape == (0, 20)


def test_parameters_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r'layer_norm: weight and bias of x \(3, 20\) must be \(20,\)'
    ):
        layer_norm(torch.zeros(3, 20), torch.zeros(19))
    with pytest.raises(ValueError, match='layer_norm: weight'):
        compiled.forward(
            torch.zeros(3, 20), torch.zeros(20).double(), torch.zeros(20), 1e-5, keep=False
        )
    with pytest.raises(ValueError, match='layer_norm: grad'):
        compiled.backward(
            torch.zeros(4, 20), torch.zeros(3, 20), None, torch.zeros(3), torch.zeros(3)
        )


@compiles
def test_second_derivatives_are_refused():
    x = torch.randn(3, 20, requires_grad=True)
    (grad,) = torch.autograd.grad(layer_norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="layer_norm: second .* backend='reference'"):
        grad.sum().backward()

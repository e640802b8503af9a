"""Layer norm against the formula in float64."""

import pytest
import torch

from mmlk.layers import LayerNorm
from mmlk.ops import explain, layer_norm
from mmlk.ops.norm.loops_layer_norm import forward
from tests.cases import TOLERANCE, assert_close


def formula(x, weight, bias, eps):
    x = x.double()
    away = x - x.mean(-1, keepdim=True)
    y = away / (away.square().mean(-1, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight.double()
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize('affine', [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize('shape', [(2, 3, 5, 96), (700, 37), (1, 16), (3, 15), (4, 1), (2, 998)])
def test_equals_the_formula(shape, affine):
    torch.manual_seed(0)
    x = 3 * torch.randn(shape) + 20  # a mean that is large beside the deviation
    weight, bias = (torch.randn(shape[-1]) if each else None for each in affine)
    with torch.no_grad():
        assert 'cpu: used' in explain('layer_norm', x, weight, bias, 1e-6)
        got = layer_norm(x, weight, bias, 1e-6)
    assert_close('output', got, formula(x, weight, bias, 1e-6), 20 * TOLERANCE[torch.float32][0])


def test_the_module_is_torchs_with_gradients():
    module, x = LayerNorm(24, 1e-6), torch.randn(3, 24)
    torch.nn.init.normal_(module.weight)
    want = torch.nn.functional.layer_norm(x, (24,), module.weight, module.bias, 1e-6)
    assert torch.equal(module(x), want)
    with torch.no_grad():
        assert_close('inference', module(x), want, TOLERANCE[torch.float32][0])
    assert 'gradients' in explain('layer_norm', x, module.weight, module.bias, 1e-6)


def test_what_the_loops_do_not_take_is_said():
    x = torch.randn(4, 6, 8)
    with torch.no_grad():
        assert 'not contiguous' in explain('layer_norm', x.transpose(0, 1))
        assert 'not empty' in explain('layer_norm', x[:0])
        assert 'float32' in explain('layer_norm', x.double())
        assert torch.equal(layer_norm(x[:0]), x[:0])
    with pytest.raises(ValueError, match=r'x \(4, 6, 8\) and weight \(6,\) are not'):
        layer_norm(x, torch.ones(6))
    with pytest.raises(ValueError, match=r'layer_norm: bias \(3,\)'):
        forward(x[0], None, torch.ones(3), 1e-6)

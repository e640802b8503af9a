"""The second half of ConvNeXt-like blocks in training, against its layers in float64."""

import copy

import pytest
import torch
from torch import nn

from mmlk.layers import DropPath, add_normed_mlp
from tests.cases import TOLERANCE, assert_close

LIMIT = TOLERANCE[torch.float32][1]


class Half(nn.Module):
    def __init__(self, channels, scaled=True, rate=0.0):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.first, self.act = nn.Linear(channels, 4 * channels), nn.GELU()
        self.second = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.ones(channels)) if scaled else None
        self.drop_path = DropPath(rate)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x, mixed):
        return add_normed_mlp(
            x, mixed, self.norm, self.first, self.act, self.second, self.scale, self.drop_path
        )


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


def outcome(module, maps, cotangent):
    maps = [last(each.detach()).requires_grad_() for each in maps]
    torch.manual_seed(2)  # drops some samples, not all
    y = module(*maps)
    module.zero_grad()
    y.backward(cotangent.to(y.dtype))
    return {
        'y': y,
        'x': maps[0].grad,
        'mixed': maps[1].grad,
        **{key: each.grad for key, each in module.named_parameters()},
    }


# Rows below and above what the compiled products take, and where weights are packed first.
@pytest.mark.parametrize('rate', [0.0, 0.5])
@pytest.mark.parametrize('scaled', [True, False])
@pytest.mark.parametrize('size', [(2, 20, 3, 2), (3, 24, 5, 6), (2, 33, 13, 11)], ids=str)
def test_equals_the_layers_in_float64(size, scaled, rate):
    module = Half(size[1], scaled, rate).train()
    maps, cotangent = [torch.randn(size), torch.randn(size)], torch.randn(size)
    got = outcome(module, maps, cotangent)
    want = outcome(copy.deepcopy(module).double(), [each.double() for each in maps], cotangent)
    if rate:
        assert (got['y'] == maps[0]).flatten(1).all(1).any(), 'no sample was dropped'
    for key, value in want.items():
        assert_close(key, got[key], value, LIMIT)
    assert got['y'].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    'frozen',
    [
        'norm.weight',
        'norm.bias',
        'first.weight',
        'first.bias',
        'second.weight',
        'second.bias',
        'scale',
    ],
)
def test_frozen_parameters_get_no_gradient_and_change_no_other(frozen):
    module = Half(16).train()
    size = 2, 16, 5, 5
    maps, cotangent = [torch.randn(size), torch.randn(size)], torch.randn(size)
    want = outcome(module, maps, cotangent)
    module.get_parameter(frozen).requires_grad_(False)
    got = outcome(module, maps, cotangent)
    assert got.pop(frozen) is None
    for key, value in got.items():
        assert torch.equal(value, want[key]), key


def test_maps_without_gradient():
    module, x = Half(16).train(), last(torch.randn(2, 16, 4, 4))
    mixed = x.clone().requires_grad_()
    module(x, mixed).sum().backward()
    assert x.grad is None and mixed.grad is not None
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module(x.requires_grad_(), mixed.detach()).sum().backward()
    assert (x.grad == 1).all()


def test_second_derivatives_are_refused():
    module, x = Half(16).train(), last(torch.randn(2, 16, 4, 4)).requires_grad_()
    (grad,) = torch.autograd.grad(module(x, x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='second derivatives are not available'):
        grad.sum().backward()

"""The folded linear layer against the layers it stands for."""

import copy

import pytest
import torch
from torch import nn

from mmlk.layers import FoldedLinear, FoldedPatchConv2d, FoldedPointwiseConv2d, fold_patches
from mmlk.ops import explain
from tests.cases import TOLERANCE, assert_close


@pytest.mark.parametrize('gelu', [False, True])
@pytest.mark.parametrize(('shape', 'outputs'), [((2, 5, 3, 13), 52), ((1, 249), 7), ((0, 8), 4)])
def test_equals_the_plain_layers_with_and_without_gradients(shape, outputs, gelu):
    layer = nn.Linear(shape[-1], outputs)
    folded = FoldedLinear(layer, gelu)
    x = torch.randn(shape)
    want = (nn.functional.gelu(layer(x)) if gelu else layer(x)).detach()
    with torch.no_grad():
        assert_close('inference', folded(x), want, TOLERANCE[torch.float32][0])
        assert_close(
            'strided',
            folded(x.flip(0))[..., :1],
            want.flip(0)[..., :1],
            TOLERANCE[torch.float32][0],
        )
    assert_close('with gradients', folded(x), want, TOLERANCE[torch.float32][0])
    assert folded.state_dict().keys() == layer.state_dict().keys()


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('gelu', [False, True])
def test_pointwise_convolution_and_residual(layout, gelu):
    layer = nn.Conv2d(11, 21, 1)
    folded = FoldedPointwiseConv2d(layer, gelu)
    x = torch.randn(2, 11, 4, 3).contiguous(memory_format=layout)
    residual = torch.randn(2, 21, 4, 3).contiguous(memory_format=layout)
    want = layer(x).detach()
    want = nn.functional.gelu(want) if gelu else want
    with torch.no_grad():
        assert_close('inference', folded(x), want, TOLERANCE[torch.float32][0])
        assert_close('residual', folded(x, residual), residual + want, TOLERANCE[torch.float32][0])
    assert_close(
        'with gradients', folded(x, residual), residual + want, TOLERANCE[torch.float32][0]
    )
    assert folded.state_dict().keys() == layer.state_dict().keys()


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(('channels', 'patch', 'size'), [(3, 4, (16, 13)), (11, 2, (6, 7))])
def test_convolution_of_patches(channels, patch, size, layout):
    layer = nn.Conv2d(channels, 21, patch, patch)
    folded = fold_patches(layer)
    x = torch.randn(2, channels, *size).contiguous(memory_format=layout)
    want = layer.double()(x.double()).detach()
    layer.float()
    with torch.no_grad():
        assert_close('inference', folded(x), want, TOLERANCE[torch.float32][0])
        args = x, folded.weight, folded.bias
        used = 'cpu: used' in explain('patch_conv2d', *args, copies=folded._packed)
        assert used == (layout == torch.channels_last)
        folded.weight.mul_(2)
        changed = layer(x)
        assert_close('changed', folded(x), changed, TOLERANCE[torch.float32][0])
    assert_close('with gradients', folded(x), changed, TOLERANCE[torch.float32][0])
    assert folded.state_dict().keys() == layer.state_dict().keys()


def test_other_convolutions_are_not_those_of_patches():
    for layer in (nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 4, 2, 2, 1), nn.Conv2d(4, 4, 2, 2, groups=2)):
        assert fold_patches(layer) is layer
    assert type(fold_patches(nn.Conv2d(4, 4, 2, 2))) is FoldedPatchConv2d


def test_residual_of_a_linear_layer():
    folded, x, residual = FoldedLinear(nn.Linear(7, 9)), torch.randn(2, 3, 7), torch.randn(2, 3, 9)
    want = (residual + nn.functional.linear(x, folded.weight, folded.bias)).detach()
    with torch.no_grad():
        assert_close('inference', folded(x, residual), want, TOLERANCE[torch.float32][0])
    assert_close('with gradients', folded(x, residual), want, TOLERANCE[torch.float32][0])


def test_a_changed_weight_is_seen_and_copies_are_independent():
    folded = FoldedLinear(nn.Linear(24, 16))
    x = torch.randn(3, 24)
    with torch.no_grad():
        before = folded(x)
        clone = copy.deepcopy(folded)
        folded.weight.mul_(2)
        assert_close(
            'changed',
            folded(x),
            nn.functional.linear(x, folded.weight, folded.bias),
            TOLERANCE[torch.float32][0],
        )
        assert_close('clone', clone(x), before, TOLERANCE[torch.float32][0])
        assert_close(
            'double',
            folded.double()(x.double()),
            nn.functional.linear(x.double(), folded.weight, folded.bias),
            TOLERANCE[torch.float64][0],
        )


def test_weights_made_in_inference_mode_work():
    with torch.inference_mode():
        folded = FoldedLinear(nn.Linear(8, 4), gelu=True)
        x = torch.randn(3, 8)
        assert_close(
            'output',
            folded(x),
            nn.functional.gelu(nn.functional.linear(x, folded.weight, folded.bias)),
            TOLERANCE[torch.float32][0],
        )

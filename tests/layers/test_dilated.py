"""Large kernels with dilated ones beside them: recorded values, the definition, folding."""

import copy

import pytest
import torch
import torch.nn.functional as F

from mmlk.layers import DilatedReparamConv2d
from mmlk.layers.dilated import BRANCHES, dilated_kernel
from mmlk.ops import DepthwiseConv2d
from tests.cases import GOLDEN_OPERATOR, GOLDEN_TRAIN_MODE, TOLERANCE, assert_close, away
from tests.golden_weights import assert_matches, golden_input, load_golden, load_golden_weights

RECORD = load_golden('unireplknet/operator-dilated-reparam')
OUTPUT = TOLERANCE[torch.float32][0]
LAYOUTS = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)


@pytest.mark.parametrize('side,dilation', [(5, 1), (7, 2), (3, 5), (1, 4)])
def test_kernel_with_gaps_equals_the_dilated_one(side, dilation):
    weight, x = golden_input((3, 1, side, side)), golden_input((2, 3, 17, 12), seed=1)
    kernel = dilated_kernel(weight, dilation)
    span = dilation * (side - 1) + 1
    assert kernel.shape == (3, 1, span, span)
    want = F.conv2d(x, weight, padding=span // 2, dilation=dilation, groups=3)
    assert_close('map', F.conv2d(x, kernel, padding=span // 2, groups=3), want, OUTPUT)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('mode', ['eval', 'train'])
@pytest.mark.parametrize(
    'case', RECORD['cases'], ids=lambda case: f'k{case["kernel_size"]}-h{case["input_shape"][2]}'
)
def test_values_and_gradients_are_the_authors(case, mode, layout, monkeypatch):
    if case['kernel_size'] != 13 or case['input_shape'][2] < 13:  # each compiles loops of its own
        monkeypatch.setenv('MMLK_BACKEND', 'reference')
    mixer = load_golden_weights(DilatedReparamConv2d(6, case['kernel_size']))
    assert [[k, list(v.shape)] for k, v in mixer.state_dict().items()] == case['keys']
    mixer.train(mode == 'train')
    tolerance = GOLDEN_OPERATOR if mode == 'eval' else GOLDEN_TRAIN_MODE
    x = golden_input(case['input_shape']).contiguous(memory_format=LAYOUTS[layout])
    y = mixer(x.requires_grad_())
    (y * golden_input(y.shape, seed=1)).sum().backward()
    want = case[mode]
    assert_matches('output', y, want['output'], tolerance)
    assert_matches('input gradient', x.grad, want['grad_input'], tolerance)
    for key, summary in want['grad_params'].items():
        assert_matches(key, mixer.get_parameter(key).grad, summary, GOLDEN_TRAIN_MODE, floor=0.1)
    if mode == 'train':
        for name in ('running_mean', 'running_var'):
            assert_matches(name, mixer.get_buffer(f'origin_bn.{name}'), case[name], GOLDEN_OPERATOR)


@torch.no_grad()
@pytest.mark.parametrize('size', BRANCHES)
def test_it_folds_to_one_kernel(size, monkeypatch):
    monkeypatch.setenv('MMLK_BACKEND', 'reference')
    torch.manual_seed(0)
    mixer, x = away(DilatedReparamConv2d(5, size)).eval(), golden_input((2, 5, 19, 14))
    with torch.enable_grad():
        want = mixer(x)  # every kernel by itself
    assert_close('without gradients', mixer(x), want, 2 * OUTPUT)
    folded = mixer.switch_to_deploy()
    assert type(folded) is DepthwiseConv2d and folded.kernel_size == (size, size)
    assert_close('folded', folded(x), want, 2 * OUTPUT)
    if size == 13:
        folded = load_golden_weights(DilatedReparamConv2d(6, 13)).eval().switch_to_deploy()
        for name in ('weight', 'bias'):
            value, summary = getattr(folded, name), RECORD['merged_13'][name]
            assert_matches(name, value, summary, GOLDEN_OPERATOR)


def test_layers_that_were_changed_are_called_as_they_are():
    mixer, x = away(DilatedReparamConv2d(4, 13)).train(), golden_input((2, 4, 12, 12))
    plain, seen = copy.deepcopy(mixer), []
    mixer.dil_conv_k3_4.register_forward_hook(lambda *_: seen.append(1))
    assert_close('hooked', mixer(x), plain(x), 5 * OUTPUT)
    assert seen == [1]
    wider = copy.deepcopy(plain)
    wider.dil_conv_k3_4.dilation, wider.dil_conv_k3_4.padding = (6, 6), (6, 6)
    branches = [(wider.lk_origin, wider.origin_bn)]
    branches += [
        (getattr(wider, f'dil_conv_k{k}_{d}'), getattr(wider, f'dil_bn_k{k}_{d}'))
        for k, d in BRANCHES[13]
    ]
    want = sum(norm(layer(x)) for layer, norm in copy.deepcopy(branches))
    assert_close('wider', wider(x), want, OUTPUT)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='kernel_size 14 is not one of 5, 7, 9, 11, 13, 15, 17'):
        DilatedReparamConv2d(4, 14)
    with pytest.raises(ValueError, match=r'\(1, 3, 8, 8\), expected \(N, 4, H, W\)'):
        DilatedReparamConv2d(4, 5)(torch.zeros(1, 3, 8, 8))
    untracked = dict(type='BN', track_running_stats=False)
    with pytest.raises(ValueError, match='keeps no running statistics'):
        DilatedReparamConv2d(4, 5, untracked).switch_to_deploy()

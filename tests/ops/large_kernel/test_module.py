"""SLaK's decomposed kernel against recorded outputs, gradients and folds of the authors' code."""

import pytest
import torch
from torch import nn

from mmlk.ops import LargeKernelDWConv2d, depthwise_conv2d
from tests.cases import GOLDEN_OPERATOR, GOLDEN_TRAIN_MODE, TOLERANCE, assert_close
from tests.golden_weights import (
    assert_matches,
    golden_input,
    golden_tensor,
    load_golden,
    load_golden_weights,
)

DEPTHWISE = load_golden('slak/operator-depthwise')['cases']
MODULES = [
    *load_golden('slak/operator-reparam-decom')['cases'],
    *load_golden('slak/operator-reparam-full')['cases'],
]
EVAL_WITH_NORMS = [case for case in MODULES if case['bn'] and not case['train_mode']]


def case_id(case):
    kernel = case.get('kernel') or [case['kernel_size'], case['small_kernel']]
    mode = '-train' if case.get('train_mode') else ''
    return 'x'.join(map(str, kernel)) + '-on-' + 'x'.join(map(str, case['input_shape'])) + mode


def golden_module(case):
    module = LargeKernelDWConv2d(
        case['channels'],
        case['kernel_size'],
        case['small_kernel'],
        case['Decom'],
        norm=nn.SyncBatchNorm if case['bn'] else None,
    )
    return load_golden_weights(module).train(case['train_mode'])


@pytest.mark.parametrize('backend', ['reference', 'cpu'])
@pytest.mark.parametrize('case', DEPTHWISE, ids=case_id)
def test_strips_and_squares_match_the_authors(case, backend):
    x = golden_input(case['input_shape']).requires_grad_()
    key, shape = case['keys'][0][:2]
    weight = golden_tensor(key, shape, torch.float32).requires_grad_()
    y = depthwise_conv2d(x, weight, backend=backend)
    (y * golden_input(y.shape, seed=1)).sum().backward()
    assert_matches('output', y, case['output'], GOLDEN_OPERATOR)
    assert_matches('input gradient', x.grad, case['grad_input'], GOLDEN_OPERATOR)
    assert_matches(
        'weight gradient', weight.grad, case['grad_params']['weight'], TOLERANCE[torch.float32][1]
    )


@pytest.mark.parametrize('case', MODULES, ids=case_id)
def test_module_matches_the_authors(case):
    module = golden_module(case)
    assert [[k, list(v.shape)] for k, v in module.state_dict().items()] == [
        key[:2] for key in case['keys']
    ]
    x = golden_input(case['input_shape']).requires_grad_()
    y = module(x)
    (y * golden_input(y.shape, seed=1)).sum().backward()
    tolerance = GOLDEN_TRAIN_MODE if case['train_mode'] else GOLDEN_OPERATOR
    assert_matches('output', y, case['output'], tolerance)
    assert_matches('input gradient', x.grad, case['grad_input'], tolerance)
    for key, summary in case['grad_params'].items():
        assert_matches(key, module.get_parameter(key).grad, summary, 10 * tolerance)
    buffers = case.get('buffers_after_one_forward', {})
    for key in (key for key in buffers if 'running' in key):
        assert_matches(key, module.get_buffer(key), buffers[key], GOLDEN_OPERATOR, floor=0.1)
    for key in (key for key in buffers if 'num_batches' in key):
        assert module.get_buffer(key) == buffers[key]


@pytest.mark.parametrize('dense', [False, True], ids=['strips', 'dense'])
@pytest.mark.parametrize('case', EVAL_WITH_NORMS, ids=case_id)
def test_folded_module_matches_the_authors_unfolded_output(case, dense):
    module = golden_module(case)
    assert module.switch_to_deploy(dense) is module
    with torch.no_grad():
        y = module(golden_input(case['input_shape']))
    assert_matches('output', y, case['output'], GOLDEN_OPERATOR)
    assert not any(isinstance(child, nn.SyncBatchNorm) for child in module.modules())
    keys = set(module.state_dict())
    module.switch_to_deploy(dense)
    assert set(module.state_dict()) == keys


@pytest.mark.parametrize('case', EVAL_WITH_NORMS, ids=case_id)
def test_dense_kernel_is_the_recorded_one(case):
    module = golden_module(case).switch_to_deploy(dense=True)
    record = case.get('derived_one_KxK_kernel') or {
        key.removeprefix('lkb_reparam.').replace('weight', 'kernel'): value
        for key, value in case['official_merged'].items()
    }
    assert_matches('kernel', module.lkb_reparam.weight, record['kernel'], GOLDEN_OPERATOR)
    assert_matches('bias', module.lkb_reparam.bias, record['bias'], GOLDEN_OPERATOR)


def test_two_strips_are_left_of_three_branches():
    module = LargeKernelDWConv2d(6, 51).switch_to_deploy()
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == {
        'tall.weight': (6, 1, 51, 5),
        'tall.bias': (6,),
        'wide.weight': (6, 1, 5, 51),
    }


def test_folding_keeps_double_precision_and_the_function():
    module = LargeKernelDWConv2d(4, 13, 3).double().eval()
    for branch in module.children():
        branch.bn.running_mean.normal_()
        branch.bn.running_var.uniform_(0.5, 2)
        nn.init.normal_(branch.bn.weight)
        nn.init.normal_(branch.bn.bias)
    x = torch.randn(2, 4, 9, 17, dtype=torch.float64)
    want = module(x)
    assert_close('folded', module.switch_to_deploy()(x), want, 10 * TOLERANCE[torch.float64][0])


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        ((50, 5), 'size 50 '),
        ((51, 4), 'size 4 '),
        ((129, 5), 'size 129 '),
        ((0, 5), 'size 0 '),
        ((-3, 5), 'size -3 '),
        ((7.0, 3), 'size 7.0 '),
        ((7, 100), 'size 100 '),
    ],
)
def test_bad_kernel_sizes_are_named(sizes, message):
    with pytest.raises(ValueError, match=f'{message}must be an odd number from 1 to 127'):
        LargeKernelDWConv2d(4, *sizes)


def test_even_small_kernel_is_accepted_where_it_is_not_used():
    assert 'small_conv' not in dict(
        LargeKernelDWConv2d(4, 7, 100, decomposed=False).named_children()
    )


def test_wrong_channels_and_untracked_statistics_are_named():
    module = LargeKernelDWConv2d(
        4, 7, 3, norm=lambda channels: nn.BatchNorm2d(channels, track_running_stats=False)
    )
    with pytest.raises(ValueError, match=r'\(1, 5, 8, 8\), expected \(N, 4, H, W\)'):
        module(torch.zeros(1, 5, 8, 8))
    with pytest.raises(ValueError, match='BatchNorm2d keeps no running statistics'):
        module.switch_to_deploy()

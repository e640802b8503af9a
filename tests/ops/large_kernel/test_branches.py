"""Several kernels on one map: against the reference in float64, as registered operators, refusals."""

import pytest
import torch
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from mmlk.ops import (
    large_kernel_branches,
    large_kernel_branches_reference,
    large_kernel_sum,
    large_kernel_sum_reference,
)
from tests.cases import GRADCHECK, TOLERANCE, assert_close
from tests.ops.helpers import LAYOUTS, double, leaf, outputs_and_gradients

# Kernels of the branches, map
CASES = {
    'strips-and-small': (((51, 5), (5, 51), (5, 5)), (2, 6, 28, 23)),
    'strips': (((13, 5), (5, 13)), (2, 5, 9, 16)),
    'square-and-small-clipped': (((31, 31), (5, 5)), (1, 3, 6, 7)),
}


@pytest.fixture(params=['compiled', 'torch'], autouse=True)
def loops(request, monkeypatch):
    """With compiled loops where they can be had, and as without them."""
    monkeypatch.setenv('MMLK_JIT', str(int(request.param == 'compiled')))


def branches(x, *weights):
    return torch.cat(large_kernel_branches(x, weights))


def branches_reference(x, *weights):
    return torch.cat(large_kernel_branches_reference(x, weights))


def registered_branches(x, *weights):
    parts = torch.ops.mmlk.large_kernel_branches(x, *weights, *(None,) * (3 - len(weights)))
    return torch.cat(parts[: len(weights)])


def registered_sum(x, bias, *weights):
    return torch.ops.mmlk.large_kernel_sum(x, *weights, *(None,) * (3 - len(weights)), bias)


def total(x, bias, *weights):
    return large_kernel_sum(x, weights, bias)


def total_reference(x, bias, *weights):
    return large_kernel_sum_reference(x, weights, bias)


def inputs(case, layout='contiguous', dtype=torch.float32):
    kernels, shape = CASES[case]
    return (
        LAYOUTS[layout](shape, dtype),
        torch.randn(shape[1]).to(dtype),
        *(torch.randn(shape[1], 1, *kernel).to(dtype) for kernel in kernels),
    )


def check(function, reference, tensors, dtype):
    cotangent = torch.randn_like(reference(*tensors))
    got = outputs_and_gradients(function, [leaf(each) for each in tensors], cotangent)
    want = outputs_and_gradients(reference, [double(each) for each in tensors], cotangent)
    for index, (mine, theirs) in enumerate(zip(got, want)):
        assert mine.dtype == dtype
        # Every branch rounds once where the branches are composed.
        assert_close(f'result {index}', mine, theirs, 2 * TOLERANCE[dtype][index > 1])


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'channels_last_slice'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize('case', CASES)
def test_branches_and_sums_equal_the_reference(case, dtype, layout):
    x, bias, *weights = inputs(case, layout, dtype)
    check(branches, branches_reference, (x, *weights), dtype)
    check(registered_branches, branches_reference, (x, *weights), dtype)
    check(total, total_reference, (x, bias, *weights), dtype)
    check(registered_sum, total_reference, (x, bias, *weights), dtype)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('case', CASES)
def test_registered_operators_pass_opcheck(case, layout):
    x, bias, *weights = inputs(case, layout)
    kernels = (*weights, *(None,) * (3 - len(weights)))
    wanted = tuple(None if each is None else leaf(each) for each in kernels)
    opcheck(torch.ops.mmlk.large_kernel_branches.default, (leaf(x), *wanted))
    opcheck(torch.ops.mmlk.large_kernel_sum.default, (leaf(x), *wanted, leaf(bias)))
    for mask in ([True, True, True, len(weights) > 2, True], [False, True, False, False, False]):
        opcheck(torch.ops.mmlk.large_kernel_backward.default, (x, x + 1, x - 1, x, *kernels, mask))


def test_gradcheck():
    x, bias, *weights = (
        leaf(torch.randn(shape, dtype=torch.float64))
        for shape in ((1, 2, 5, 6), (2,), (2, 1, 7, 3), (2, 1, 3, 7), (2, 1, 3, 3))
    )
    assert torch.autograd.gradcheck(registered_branches, (x, *weights), **GRADCHECK)
    assert torch.autograd.gradcheck(registered_sum, (x, bias, *weights), **GRADCHECK)


def test_compiled_without_graph_breaks_equals_eager():
    torch._dynamo.reset()
    tensors = [leaf(each) for each in inputs('strips')]
    x, bias, *weights = tensors
    for function, arguments in (
        (branches, (x, *weights)),
        (total, (x, bias, *weights)),
        (registered_sum, (x, bias, *weights)),
    ):
        cotangent = torch.randn_like(function(*arguments))
        got = outputs_and_gradients(torch.compile(function, fullgraph=True), arguments, cotangent)
        for mine, theirs in zip(got, outputs_and_gradients(function, arguments, cotangent)):
            assert_close('result', mine, theirs, TOLERANCE[torch.float32][1])


@pytest.mark.parametrize('function', [branches, registered_branches])
def test_autocast_casts_the_map_only(function):
    x, _, *weights = inputs('strips-and-small')
    weights = [leaf(each) for each in weights]
    with torch.autocast('cpu', torch.bfloat16):
        y = function(x, *weights)
    assert y.dtype == torch.bfloat16
    grads = torch.autograd.grad(y.float().sum(), weights)
    assert [each.dtype for each in grads] == [torch.float32] * 3
    assert_close('y', y, branches_reference(x, *weights), 2 * TOLERANCE[torch.bfloat16][0])


def test_an_unused_branch_has_a_zero_gradient():
    x, _, *weights = inputs('strips-and-small')
    weights = [leaf(each) for each in weights]
    parts = torch.ops.mmlk.large_kernel_branches(x, *weights)
    grads = torch.autograd.grad(parts[1].sum(), weights)
    assert [bool(each.any()) for each in grads] == [False, True, False]


def test_flops_are_those_of_the_kernels():
    x, bias, *weights = (leaf(each) for each in inputs('strips-and-small'))
    once = 2 * x.numel() * (2 * 255 + 25)
    with FlopCounterMode(display=False) as counter:
        y = registered_sum(x, bias, *weights)
    assert counter.get_total_flops() == once
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * once


@pytest.mark.parametrize(
    'change,message',
    [
        (lambda x, bias, *weights: (x[0], weights, bias), 'x has shape'),
        (lambda x, bias, *weights: (x, weights[:1], bias), 'got 1 kernels, expected 2 or 3'),
        (
            lambda x, bias, *weights: (x, (weights[0], weights[1][:2]), bias),
            r'weights\[1\] has shape',
        ),
        (
            lambda x, bias, *weights: (x, (weights[0], weights[1][..., 1:]), bias),
            r'weights\[1\] has the even kernel',
        ),
        (lambda x, bias, *weights: (x.half(), weights, bias), 'x is torch.float16 but'),
        (lambda x, bias, *weights: (x, weights, bias[1:]), 'bias has shape'),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=f'large_kernel_sum: {message}'):
        large_kernel_sum(*change(*inputs('strips')))

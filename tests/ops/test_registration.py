"""What PyTorch's own machinery must see in the registered operators."""

import itertools

import pytest
import torch
from torch.library import opcheck

from mmlk.ops import depthwise_conv2d, inception_dwconv2d
from tests.cases import DEPTHWISE_CASES, GRADCHECK, TOLERANCE, assert_close
from tests.ops.helpers import LAYOUTS, leaf

REGISTERED = ['k3', 'k5-stride2', 'k17', 'k5x51', 'k31', 'k61x61-clipped']


def depthwise_arguments(case, layout='contiguous', dtype=torch.float32):
    shape, kernel, stride = DEPTHWISE_CASES[case]
    stride = torch.broadcast_to(torch.tensor(stride), (2,)).tolist()
    return (
        LAYOUTS[layout](shape, dtype),
        torch.randn(shape[1], 1, *kernel, dtype=dtype),
        torch.randn(shape[1], dtype=dtype),
        stride,
    )


def inception_arguments(layout='contiguous', dtype=torch.float32, channels=10, size=(7, 6)):
    g = channels // 4
    shapes = ((g, 1, 3, 3), (g,), (g, 1, 1, 11), (g,), (g, 1, 11, 1), (g,))
    return (
        LAYOUTS[layout]((2, channels, *size), dtype),
        *(torch.randn(shape, dtype=dtype) for shape in shapes),
    )


def wanting_gradients(arguments):
    return tuple(leaf(each) if isinstance(each, torch.Tensor) else each for each in arguments)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('case', REGISTERED)
def test_opcheck_depthwise(case, layout):
    arguments = depthwise_arguments(case, layout)
    opcheck(torch.ops.mmlk.depthwise_conv2d.default, wanting_gradients(arguments))


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('case', REGISTERED)
def test_opcheck_depthwise_backward(case, layout):
    x, weight, bias, stride = depthwise_arguments(case, layout)
    grad = torch.ops.mmlk.depthwise_conv2d(x, weight, bias, stride)
    opcheck(
        torch.ops.mmlk.depthwise_conv2d_backward.default,
        (grad, x, weight, stride, [True, True, True]),
    )
    opcheck(
        torch.ops.mmlk.depthwise_conv2d_backward.default,
        (grad, x, weight, stride, [False, True, False]),
    )


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'channels_last_slice'])
def test_opcheck_inception(layout):
    arguments = inception_arguments(layout)
    x, hw, _, w, _, h, _ = arguments
    opcheck(torch.ops.mmlk.inception_dwconv2d.default, wanting_gradients(arguments))
    opcheck(
        torch.ops.mmlk.inception_dwconv2d_backward.default,
        (torch.randn_like(x), x, hw, w, h, [True] * 7),
    )
    opcheck(
        torch.ops.mmlk.inception_dwconv2d_backward.default,
        (torch.randn_like(x), x, hw, w, h, [False, True, False, False, True, False, False]),
    )


@pytest.mark.parametrize(
    'kernel,size,stride',
    [((3, 3), (5, 4), 1), ((5, 3), (5, 6), 2), ((5, 7), (6, 5), 1), ((3, 17), (4, 12), 1)],
)
def test_gradcheck_depthwise(kernel, size, stride):
    x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *args: depthwise_conv2d(*args, stride, backend='cpu'), (x, weight, bias), **GRADCHECK
    )


@pytest.mark.parametrize('kernel,size', [((17, 17), (40, 41)), ((5, 21), (24, 24))])
def test_gradcheck_depthwise_along_random_directions(kernel, size):
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, *kernel, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(depthwise_conv2d, (x, weight), fast_mode=True, **GRADCHECK)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('function', [inception_dwconv2d, torch.ops.mmlk.inception_dwconv2d])
def test_gradcheck_inception(function, layout):
    arguments = inception_arguments(layout, torch.float64, channels=5, size=(4, 3))
    assert torch.autograd.gradcheck(function, wanting_gradients(arguments), **GRADCHECK)


@pytest.mark.parametrize('low', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('case', ['k3', 'k17', 'k5-stride2'])
def test_autocast_gives_the_dtype_and_value_of_conv2d(case, low):
    x, weight, bias, stride = wanting_gradients(depthwise_arguments(case))
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    with torch.autocast('cpu', low):
        got = depthwise_conv2d(x, weight, bias, stride)
        want = torch.nn.functional.conv2d(x, weight, bias, stride, padding, 1, x.shape[1])
    grads = torch.autograd.grad(got.float().sum(), (x, weight, bias))
    wants = torch.autograd.grad(want.float().sum(), (x, weight, bias))
    assert got.dtype == want.dtype == low
    assert [each.dtype for each in grads] == [torch.float32] * 3
    assert_close('y', got, want, TOLERANCE[low][0])
    for name, mine, theirs in zip(('x', 'weight', 'bias'), grads, wants):
        assert_close(name, mine, theirs, 2 * TOLERANCE[low][1])  # both sides round


@pytest.mark.parametrize('low', [torch.bfloat16, torch.float16], ids=str)
def test_autocast_reaches_the_inception_operator(low):
    arguments = inception_arguments()
    with torch.autocast('cpu', low):
        got = inception_dwconv2d(*arguments)
        want = inception_dwconv2d(*arguments, backend='reference')
    assert got.dtype == low
    assert_close('y', got, want, 2 * TOLERANCE[low][0])  # both sides round


def test_autocast_leaves_float64_alone():
    arguments = depthwise_arguments('k3', dtype=torch.float64)
    with torch.autocast('cpu', torch.bfloat16):
        assert depthwise_conv2d(*arguments).dtype == torch.float64


def run(function, arguments):
    arguments = wanting_gradients(arguments)
    out = function(*arguments)
    out.sum().backward()
    return [out, *(each.grad for each in arguments if isinstance(each, torch.Tensor))]


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('case', ['k3', 'k7', 'k17-large-map', 'k5-stride2'])
def test_compiled_without_graph_breaks_equals_eager(case, layout):
    arguments = depthwise_arguments(case, layout)

    def function(*args):
        return torch.nn.functional.gelu(depthwise_conv2d(*args)) * 2

    torch._dynamo.reset()
    compiled = run(torch.compile(function, fullgraph=True), arguments)
    for mine, theirs in zip(compiled, run(function, arguments)):
        assert_close('result', mine, theirs, TOLERANCE[torch.float32][1])


def test_compiled_inception_equals_eager():
    torch._dynamo.reset()
    arguments = inception_arguments('channels_last')
    compiled = run(torch.compile(inception_dwconv2d, fullgraph=True), arguments)
    for mine, theirs in zip(compiled, run(inception_dwconv2d, arguments)):
        assert_close('result', mine, theirs, TOLERANCE[torch.float32][1])


def test_compiled_with_changing_map_sizes():
    torch._dynamo.reset()
    compiled = torch.compile(depthwise_conv2d, fullgraph=True, dynamic=True)
    weight = torch.randn(4, 1, 7, 7)
    for size in ((9, 8), (17, 12), (30, 31)):
        x = torch.randn(2, 4, *size)
        assert_close(
            f'{size}', compiled(x, weight), depthwise_conv2d(x, weight), TOLERANCE[torch.float32][0]
        )


@pytest.mark.parametrize(
    'case,layout',
    itertools.product(REGISTERED + ['k7', 'k17-large-map'], ['contiguous', 'channels_last']),
)
def test_two_runs_agree_to_the_bit(case, layout):
    arguments = depthwise_arguments(case, layout)
    torch.use_deterministic_algorithms(True)
    first, second = run(depthwise_conv2d, arguments), run(depthwise_conv2d, arguments)
    torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('case', REGISTERED)
def test_eager_calls_and_the_registered_operator_agree_to_the_bit(case, layout):
    arguments = depthwise_arguments(case, layout)
    eager = run(depthwise_conv2d, arguments)
    assert all(
        torch.equal(a, b)
        for a, b in zip(eager, run(torch.ops.mmlk.depthwise_conv2d.default, arguments))
    )


@pytest.mark.parametrize(
    'wanted', [(True, False, False), (False, True, False), (False, False, True)]
)
def test_eager_calls_compute_what_is_wanted(wanted):
    x, weight, bias, stride = depthwise_arguments('k17')
    tensors = [each.requires_grad_(needed) for each, needed in zip((x, weight, bias), wanted)]
    depthwise_conv2d(*tensors, stride).sum().backward()
    assert [each.grad is not None for each in tensors] == list(wanted)


def test_second_derivatives_are_refused_and_the_reference_has_them():
    x, weight = leaf(torch.randn(1, 2, 9, 9)), leaf(torch.randn(2, 1, 7, 7))
    (first,) = torch.autograd.grad(depthwise_conv2d(x, weight).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='depthwise_conv2d.*: second derivatives are not'):
        first.sum().backward()
    y = depthwise_conv2d(x, weight, backend='reference').pow(2).sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    first.sum().backward()
    assert weight.grad.abs().sum() > 0

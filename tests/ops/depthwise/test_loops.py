"""Compiled depthwise convolution and gradients against torch's in float64."""

import pytest
import torch
import torch.nn.functional as F

from mmlk.ops import depthwise_conv2d, explain, jit
from mmlk.ops.depthwise import loops as depthwise
from tests.cases import DEPTHWISE_CASES, TOLERANCE, assert_close

pytestmark = pytest.mark.skipif(
    jit.refusal() is not None, reason=f'no compiled loops: {jit.refusal()}'
)

OUTPUT, PARAMETER = TOLERANCE[torch.float32]
# Partial and several channel blocks, bands of rows and of columns, strides that do not divide.
CASES = {
    **{
        name: (shape, kernel, (stride, stride) if isinstance(stride, int) else stride)
        for name, (shape, kernel, stride) in DEPTHWISE_CASES.items()
    },
    'k3-block': ((1, 16, 9, 14), (3, 3), (1, 1)),
    'k5-two-blocks': ((2, 35, 12, 11), (5, 5), (1, 1)),
    'k5-two-blocks-stride2': ((2, 35, 13, 11), (5, 5), (2, 2)),
    'k3-wide-map': ((1, 17, 4, 150), (3, 3), (1, 1)),
    'k7-bands': ((1, 18, 70, 70), (7, 7), (1, 1)),
    'k5-bands-stride2': ((1, 18, 71, 69), (5, 5), (2, 2)),
    'k3-stride3x2': ((2, 6, 10, 13), (3, 3), (3, 2)),
    'k13x61': ((1, 20, 21, 40), (13, 61), (1, 1)),
    'k51x5-bands': ((1, 5, 70, 66), (51, 5), (1, 1)),
}


def last(shape):
    n, c, h, w = shape
    return torch.randn(n, h, w, c).permute(0, 3, 1, 2)


def problem(case):
    shape, kernel, stride = CASES[case]
    x, weight, bias = last(shape), torch.randn(shape[1], 1, *kernel), torch.randn(shape[1])
    exact = [each.double().requires_grad_() for each in (x, weight, bias)]
    y = F.conv2d(*exact, stride, (kernel[0] // 2, kernel[1] // 2), groups=shape[1])
    grad = last(y.shape)
    return x, weight, bias, stride, grad, y, torch.autograd.grad(y, exact, grad.double())


@pytest.mark.parametrize('case', CASES)
def test_equals_float64(case):
    x, weight, bias, stride, grad, y, (grad_x, grad_weight, grad_bias) = problem(case)
    assert_close('y', depthwise.forward(x, weight, bias, stride), y, OUTPUT)
    assert_close('grad_x', depthwise.input_gradient(grad, weight, x.shape, stride), grad_x, OUTPUT)
    taps, total = depthwise.weight_gradient(grad, x, tuple(weight.shape[2:]), stride)
    assert_close('grad_weight', taps, grad_weight, PARAMETER)
    assert_close('grad_bias', total, grad_bias, PARAMETER)


@pytest.mark.parametrize('shape', [(2, 5, 6, 8), (1, 35, 12, 10), (1, 18, 70, 70)], ids=str)
@pytest.mark.parametrize('stride', [1, 2])
def test_an_enlarged_map_is_added_to_the_input(shape, stride):
    n, c, h, w = shape
    x, coarse = last(shape), last((n, c, h // 2, w // 2))
    weight, bias = torch.randn(c, 1, 5, 5), torch.randn(c)
    total = x.double() + F.interpolate(coarse.double(), size=(h, w), mode='nearest')
    want = F.conv2d(total, weight.double(), bias.double(), stride, 2, groups=c)
    y = depthwise.forward(x, weight, bias, (stride, stride), coarse=coarse)
    assert_close('y', y, want, OUTPUT)
    with pytest.raises(ValueError, match='coarse map'):
        depthwise.forward(x[:, :, 1:], weight, bias, coarse=coarse)


@pytest.mark.parametrize('case', ['k3', 'k5-two-blocks', 'k5-two-blocks-stride2', 'k7-bands'])
def test_slices_are_read_and_written_in_place(case):
    """Poisoned neighbours stay as they are and do not reach the result."""
    x, weight, bias, stride, grad, y, (grad_x, grad_weight, _) = problem(case)

    def framed(inner):
        n, c, h, w = inner.shape
        whole = torch.full((n, h + 2, w + 3, c + 7), torch.nan).permute(0, 3, 1, 2)
        part = whole[:, 3 : 3 + c, 1 : 1 + h, 2 : 2 + w]
        part.copy_(inner)
        return whole, part

    x, grad = framed(x)[1], framed(grad)[1]
    for want, write in (
        (y, lambda out: depthwise.forward(x, weight, bias, stride, out=out)),
        (grad_x, lambda out: depthwise.input_gradient(grad, weight, x.shape, stride, out=out)),
    ):
        whole, out = framed(torch.full(want.shape, torch.nan))
        write(out)
        assert_close('slice', out, want, OUTPUT)
        assert whole.isfinite().sum() == want.numel()
    assert_close(
        'grad_weight',
        depthwise.weight_gradient(grad, x, tuple(weight.shape[2:]), stride)[0],
        grad_weight,
        PARAMETER,
    )


def test_parameters_may_be_strided():
    x, weight, bias = last((2, 20, 9, 8)), torch.randn(40, 1, 5, 5), torch.randn(40)
    got = depthwise.forward(x, weight[1::2], bias[1::2])
    want = depthwise.forward(x, weight[1::2].contiguous(), bias[1::2].contiguous())
    assert torch.equal(got, want)
    for stride, size in ((1, (9, 8)), (2, (5, 4))):
        grad, shape = last((2, 20, *size)), (2, 20, 9, 8)
        got = depthwise.input_gradient(grad, weight[1::2], shape, (stride, stride))
        want = depthwise.input_gradient(grad, weight[1::2].contiguous(), shape, (stride, stride))
        assert torch.equal(got, want)


def test_accumulates():
    x, weight, bias, stride, grad, y, (grad_x, _, _) = problem('k5-two-blocks')
    start = last(y.shape)
    out = depthwise.forward(x, weight, bias, stride, out=start.clone(), accumulate=True)
    assert_close('y', out, y + start.double(), OUTPUT)
    out = depthwise.input_gradient(grad, weight, x.shape, out=start.clone(), accumulate=True)
    assert_close('grad_x', out, grad_x + start.double(), OUTPUT)


@pytest.mark.parametrize('case', ['k7-bands', 'k5-bands-stride2', 'k51x5-bands'])
def test_threads_do_not_change_a_bit(case, monkeypatch):
    monkeypatch.setattr(jit.engine.Compiled, 'WORTH_A_THREAD', 1)
    x, weight, bias, stride, grad, *_ = problem(case)

    def run():
        return (
            depthwise.forward(x, weight, bias, stride),
            depthwise.input_gradient(grad, weight, x.shape, stride),
            *depthwise.weight_gradient(grad, x, tuple(weight.shape[2:]), stride),
        )

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run()
        torch.set_num_threads(4)
        assert all(torch.equal(*each) for each in zip(alone, run()))
    finally:
        torch.set_num_threads(threads)


def test_policy_says_what_it_takes(monkeypatch):
    x, weight = last((1, 8, 20, 20)), torch.randn(8, 1, 7, 7)
    assert 'forward compiled' in explain(depthwise_conv2d, x, weight)
    monkeypatch.setenv('MMLK_JIT', '0')
    assert 'forward native channels-last' in explain(depthwise_conv2d, x, weight)


def test_only_memory_that_can_be_read_is():
    """Parameters elsewhere or of another type are refused or converted, never read as they lie."""
    x, weight = last((1, 16, 20, 20)), torch.randn(16, 1, 7, 7)
    with pytest.raises(RuntimeError, match='on meta'):
        depthwise_conv2d(x, weight.to('meta'), backend='cpu')
    exact = depthwise_conv2d(x, weight, torch.ones(16))
    y = depthwise_conv2d(x, weight, torch.ones(16, dtype=torch.float16))
    assert_close('y', y, exact, OUTPUT)

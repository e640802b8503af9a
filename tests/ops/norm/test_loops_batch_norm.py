"""Compiled batch norm in training against torch's in float64."""

import pytest
import torch
import torch.nn.functional as F

from mmlk.ops import jit
from mmlk.ops.norm import loops_batch_norm as batch_norm
from tests.cases import TOLERANCE, assert_close

pytestmark = pytest.mark.skipif(
    jit.refusal() is not None, reason=f'no compiled loops: {jit.refusal()}'
)

OUTPUT, PARAMETER = TOLERANCE[torch.float32]
# Parts of a block and several, bands of several lengths, rows that do not fill the unrolled loop.
SHAPES = [
    (3, 1, 2, 2),
    (2, 5, 3, 3),
    (1, 16, 7, 9),
    (2, 40, 9, 8),
    (2, 17, 40, 61),
    (1, 128, 33, 32),
    (7, 33, 1, 1),
]
EPSILON, MOMENTUM = 1e-5, 0.1
AFTER = {'norm': {}, 'gelu': dict(gelu=True), 'sum': dict(add=True)}


def last(shape):
    n, c, h, w = shape
    return torch.randn(n, h, w, c).permute(0, 3, 1, 2)


def problem(shape, offset=2.0):
    channels = shape[1]
    parameters = [torch.randn(channels) for _ in range(3)] + [torch.rand(channels)]
    return last(shape) + offset, parameters, last(shape), last(shape)


def run(x, parameters, residual, grad, gelu=False, add=False):
    weight, bias, mean, variance = (each.clone() for each in parameters)
    y, *statistics = batch_norm.forward(
        x,
        weight,
        bias,
        mean,
        variance,
        MOMENTUM,
        EPSILON,
        gelu=gelu,
        residual=residual if add else None,
    )
    gradients = batch_norm.backward(grad, x, weight, *statistics, gelu_bias=bias if gelu else None)
    return dict(
        zip(
            ('y', 'mean', 'variance', 'grad_x', 'grad_weight', 'grad_bias'),
            (y, mean, variance, *gradients),
        )
    )


def exact(x, parameters, residual, grad, gelu=False, add=False):
    leaves = [each.double().requires_grad_() for each in (x, *parameters[:2])]
    mean, variance = (each.double() for each in parameters[2:])
    y = F.batch_norm(leaves[0], mean, variance, *leaves[1:], True, MOMENTUM, EPSILON)
    y = F.gelu(y) if gelu else y
    y = y + residual.double() if add else y
    return dict(
        zip(
            ('y', 'mean', 'variance', 'grad_x', 'grad_weight', 'grad_bias'),
            (y, mean, variance, *torch.autograd.grad(y, leaves, grad.double())),
        )
    )


@pytest.mark.parametrize('after', AFTER)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_equals_float64(shape, after):
    got, want = (
        each(*problem_, **AFTER[after]) for problem_ in [problem(shape)] for each in (run, exact)
    )
    for name, value in want.items():
        assert_close(name, got[name], value, OUTPUT if name in 'y grad_x' else PARAMETER)


def test_a_large_mean_costs_the_variance_no_digits():
    x, parameters, residual, grad = problem((2, 16, 50, 50), offset=1000.0)
    _, mean, deviation = batch_norm.forward(
        x, *(each.clone() for each in parameters), MOMENTUM, EPSILON
    )
    exact_x = x.double()
    assert_close('mean', mean, exact_x.mean((0, 2, 3)), OUTPUT)
    variance = exact_x.var((0, 2, 3), unbiased=False)
    assert_close('deviation', deviation, (variance + EPSILON).rsqrt(), OUTPUT)


@pytest.mark.parametrize('after', AFTER)
def test_threads_change_no_bit(after):
    given, before = problem((2, 72, 40, 41)), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run(*given, **AFTER[after]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_the_gradient_may_overwrite_the_incoming_one():
    x, parameters, residual, grad = problem((2, 24, 6, 7))
    want = run(x, parameters, residual, grad, gelu=True)
    weight, bias, mean, variance = (each.clone() for each in parameters)
    _, *statistics = batch_norm.forward(
        x, weight, bias, mean, variance, MOMENTUM, EPSILON, gelu=True
    )
    grad = grad.clone(memory_format=torch.preserve_format)
    grad_x, *_ = batch_norm.backward(grad, x, weight, *statistics, gelu_bias=bias, out=grad)
    assert grad_x is grad and torch.equal(grad, want['grad_x'])


def test_writes_stay_within_the_last_channels():
    """Neighbours behind the parameters, and the map's last pixel, keep their poison."""
    poison = torch.full((64,), float('nan'))
    parameters = [torch.cat((torch.rand(20), poison))[:20] for _ in range(4)]
    block = torch.full((2 * 9 * 20 + 64,), float('nan'))
    x = block[:360].view(2, 3, 3, 20).permute(0, 3, 1, 2)
    x.copy_(torch.randn(2, 20, 3, 3))
    y, *_ = batch_norm.forward(x, *parameters, MOMENTUM, EPSILON, residual=x)
    assert y.isfinite().all() and block[360:].isnan().all()
    for each in parameters:
        assert each.isfinite().all() and each._base[20:].isnan().all()


@pytest.mark.parametrize(
    'wrong',
    [lambda x: x.double(), lambda x: x.contiguous(), lambda x: x[:, 1:]],
    ids=['float64', 'contiguous', 'slice'],
)
def test_takes_dense_channels_last_float32_only(wrong):
    x = last((2, 6, 4, 5))
    assert batch_norm.can_run(x, torch.randn(6)) and not batch_norm.can_run(
        wrong(x), torch.randn(6)
    )

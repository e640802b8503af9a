"""Compiled recursive convolution against its definition in float64."""

import pytest
import torch

from mmlk.ops import jit, recconv2d, recconv2d_reference
from mmlk.ops.recconv import loops as recconv
from tests.cases import TOLERANCE, assert_close

pytestmark = pytest.mark.skipif(
    jit.refusal() is not None, reason=f'no compiled loops: {jit.refusal()}'
)

OUTPUT, PARAMETER = TOLERANCE[torch.float32]
# (N, C, H, W), kernel, levels: single pixels and rows, maps below the kernel, every width of a tile,
# parts of a channel block, sides that halve evenly and not.
CASES = {
    'pixel': ((2, 3, 1, 1), 3, 2),
    'row': ((1, 17, 1, 7), 5, 4),
    'column': ((2, 16, 7, 1), 3, 1),
    'no-level': ((2, 20, 6, 11), 5, 0),
    '1x1-kernel': ((1, 4, 6, 5), 1, 2),
    '5x5': ((3, 1, 5, 5), 7, 1),
    '9x7': ((1, 15, 9, 7), 7, 3),
    '14x14': ((2, 48, 14, 14), 5, 3),
    '33x17': ((3, 16, 33, 17), 3, 4),
    '13x36': ((1, 33, 13, 36), 5, 2),
    '97x131': ((1, 18, 97, 131), 5, 4),
    '40x97-k7': ((1, 5, 40, 97), 7, 3),
}
EVERY = [True, True, True]
MODES = ['bilinear', 'nearest']


def last(shape):
    n, c, h, w = shape
    return torch.randn(n, h, w, c).permute(0, 3, 1, 2)


def problem(case):
    shape, side, levels = CASES[case]
    kernels = [torch.randn(shape[1], 1, side, side) / side for _ in range(levels + 2)]
    return last(shape), kernels, last(shape)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('case', CASES)
def test_equals_float64(case, mode):
    x, kernels, grad = problem(case)
    exact, *exact_kernels = (each.double().requires_grad_() for each in (x, *kernels))
    want = recconv2d_reference(exact, exact_kernels[0], exact_kernels[1:], mode=mode)
    want_x, *want_kernels = torch.autograd.grad(
        want, [exact, *exact_kernels], grad.double(), materialize_grads=True
    )
    assert_close('y', recconv.forward(x, kernels[0], kernels[1:], mode), want, OUTPUT)
    grad_x, grad_kernels = recconv.backward(grad, x, kernels[0], kernels[1:], mode, EVERY)
    assert_close('grad_x', grad_x, want_x, OUTPUT)
    for index, (got, wanted) in enumerate(zip(grad_kernels, want_kernels, strict=True)):
        assert_close(f'grad of kernel {index}', got, wanted, PARAMETER)


@pytest.mark.parametrize(
    'mask', [[True, False, False], [False, True, False], [False, False, True], [False, True, True]]
)
def test_a_wanted_gradient_does_not_depend_on_the_others(mask):
    x, kernels, grad = problem('14x14')
    every = recconv.backward(grad, x, kernels[0], kernels[1:], 'bilinear', EVERY)
    grad_x, grad_kernels = recconv.backward(grad, x, kernels[0], kernels[1:], 'bilinear', mask)
    assert grad_x is None or torch.equal(grad_x, every[0])
    assert (grad_x is not None, grad_kernels is not None) == (mask[0], mask[1] or mask[2])
    assert not mask[1] or torch.equal(grad_kernels[0], every[1][0])
    assert not mask[2] or torch.equal(grad_kernels[1:], every[1][1:])


@pytest.mark.parametrize('case', ['row', '14x14', '33x17', '97x131'])
def test_threads_change_no_bit(case):
    x, kernels, grad = problem(case)

    def run(threads):
        torch.set_num_threads(threads)
        return [
            recconv.forward(x, kernels[0], kernels[1:], 'bilinear'),
            *recconv.backward(grad, x, kernels[0], kernels[1:], 'bilinear', EVERY),
        ]

    before = torch.get_num_threads()
    try:
        alone, together = run(1), run(2)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(alone, together, strict=True))


@pytest.mark.parametrize('case', ['row', '9x7', '14x14', '13x36'])
def test_neither_reads_nor_writes_around_its_tensors(case, monkeypatch):
    """Every tensor stands between poisoned margins; results and scratch start as poison."""
    margin, blocks = 64, []

    def framed(tensor):
        block = torch.full((tensor.numel() + 2 * margin,), float('nan'))
        blocks.append(block)
        inner = block[margin:-margin].as_strided(tensor.shape, tensor.stride(), margin)
        return inner.copy_(tensor)

    def poisoned(self, shape):
        size = (shape,) if isinstance(shape, int) else shape
        return framed(torch.full(size, float('nan')))

    x, kernels, grad = problem(case)
    down, *weights = kernels
    want = [
        recconv.forward(x, down, weights, 'bilinear'),
        *recconv.backward(grad, x, down, weights, 'bilinear', EVERY),
    ]
    x, grad, down, *weights = (framed(each) for each in (x, grad, *kernels))
    monkeypatch.setattr(torch.Tensor, 'new_empty', poisoned)
    got = [
        recconv.forward(x, down, weights, 'bilinear'),
        *recconv.backward(grad, x, down, weights, 'bilinear', EVERY),
    ]
    assert all(torch.equal(one, two) for one, two in zip(got, want, strict=True))
    for block in blocks:
        assert block[:margin].isnan().all() and block[-margin:].isnan().all()


def outcome(x, kernels, **options):
    x, down, *weights = (each.detach().requires_grad_() for each in (x, *kernels))
    y = recconv2d(x, down, weights, **options)
    return [y, *torch.autograd.grad(y.float().square().sum(), [x, down, *weights])]


def test_the_operator_takes_it(monkeypatch):
    """It does for float32 and narrower; ``MMLK_JIT=0`` leaves the chain of torch's operators."""
    calls = []

    def spy(name):
        inner = getattr(recconv, name)
        monkeypatch.setattr(recconv, name, lambda *args: (calls.append(name), inner(*args))[1])

    spy('forward')
    spy('backward')
    x, kernels, _ = problem('14x14')
    compiled = outcome(x, kernels)
    outcome(x.bfloat16(), [each.bfloat16() for each in kernels])
    assert calls == ['forward', 'backward'] * 2
    outcome(x.double(), [each.double() for each in kernels])
    monkeypatch.setenv('MMLK_JIT', '0')
    for one, two in zip(compiled, outcome(x, kernels), strict=True):
        assert_close('without compiled loops', one, two, PARAMETER)
    assert len(calls) == 4


def test_gradients_under_autocast_have_the_dtype_of_their_leaves():
    x, kernels, _ = problem('14x14')
    want = outcome(x, kernels)
    with torch.autocast('cpu', torch.bfloat16):
        got = outcome(x, kernels)
    assert [each.dtype for each in got] == [torch.bfloat16] + [torch.float32] * (len(got) - 1)
    for one, two in zip(got, want, strict=True):
        assert_close('bfloat16', one, two, 2 * TOLERANCE[torch.bfloat16][1])


def test_kernels_of_several_sides_take_the_chain(monkeypatch):
    monkeypatch.setattr(recconv, 'forward', None)
    x, (down, *weights), _ = problem('14x14')
    weights[1] = torch.randn(48, 1, 3, 3)
    want = recconv2d_reference(x.double(), down.double(), [each.double() for each in weights])
    assert_close('y', recconv2d(x, down, weights), want, OUTPUT)


def test_an_empty_batch_gives_an_empty_map_and_zero_gradients():
    y, grad_x, *grads = outcome(torch.zeros(0, 8, 6, 6), [torch.randn(8, 1, 3, 3)] * 4)
    assert y.shape == grad_x.shape == (0, 8, 6, 6)
    assert all(not each.any() for each in grads)

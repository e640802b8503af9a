"""Compiled branches, their norms and gradients, against torch's in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlk.ops import jit, large_kernel_branches, large_kernel_normed, large_kernel_sum
from mmlk.ops.large_kernel import loops as branches
from mmlk.ops.large_kernel import loops_norms as branch_norms
from mmlk.ops.modules import own_batch
from tests.cases import TOLERANCE, assert_close

pytestmark = pytest.mark.skipif(
    jit.refusal() is not None, reason=f'no compiled loops: {jit.refusal()}'
)

OUTPUT, PARAMETER = TOLERANCE[torch.float32]
THREE, TWO = ((13, 5), (5, 13), (5, 5)), ((31, 3), (3, 31))
PUBLISHED = ((51, 5), (5, 51), (5, 5))
# One pixel, partial and several channel blocks, kernels beyond the map, bands of rows and columns.
CASES = {
    'pixel': ((2, 3, 1, 1), THREE),
    'small': ((2, 16, 5, 7), PUBLISHED),
    'square': ((3, 62, 14, 14), TWO),
    'tall': ((1, 17, 33, 17), THREE),
    'stage': ((2, 16, 56, 56), PUBLISHED),
    'bands': ((1, 5, 70, 130), TWO),
    'order': ((2, 3, 9, 20), ((3, 9), (1, 1), (11, 3))),
    # Several parts in a task, fewer in the last, and kernels of which no row of taps fits registers.
    'many': ((9, 130, 4, 6), THREE),
    'broad': ((2, 9, 12, 19), ((9, 31), (31, 11), (7, 7))),
}


def last(shape, offset=0.0):
    n, c, h, w = shape
    return (torch.randn(n, h, w, c) + offset).permute(0, 3, 1, 2)


def problem(case):
    """Map, kernels, and in float64: both as leaves, and the branches."""
    shape, sizes = CASES[case]
    x, weights = last(shape, 2.0), [torch.randn(shape[1], 1, *size) for size in sizes]
    leaves = [each.double().requires_grad_() for each in (x, *weights)]
    maps = [
        F.conv2d(leaves[0], each, padding=(each.shape[2] // 2, each.shape[3] // 2), groups=shape[1])
        for each in leaves[1:]
    ]
    return x, weights, leaves, maps


def pixels_last(stack, x):
    """Maps in blocks of 16 channels as (B, N, H, W, C)."""
    return stack.permute(0, 1, 3, 4, 2, 5).flatten(4)[..., : x.shape[1]]


def blocked(maps):
    """Maps (N, C, H, W) in blocks of 16 channels, (B, N, C / 16, H, W, 16); what is missing is NaN."""
    padded = torch.stack(
        [F.pad(each, (0, 0, 0, 0, 0, -each.shape[1] % 16), value=float('nan')) for each in maps]
    )
    return padded.unflatten(2, (-1, 16)).permute(0, 1, 2, 4, 5, 3).contiguous()


def per_channel(values):
    return values.double().view(-1, 1, 1)


@pytest.mark.parametrize('case', CASES)
def test_convolutions_equal_float64(case):
    x, weights, leaves, maps = problem(case)
    bias = torch.randn(x.shape[1])
    assert_close('sum', branches.summed(x, weights, bias), sum(maps) + per_channel(bias), OUTPUT)
    stack = pixels_last(branches.with_moments(x, weights)[0], x)
    for mine, wanted, alone in zip(stack, maps, branches.apart(x, weights), strict=True):
        assert_close('map', alone, wanted, OUTPUT)
        assert torch.equal(mine.permute(0, 3, 1, 2), alone)
    grads = [last(x.shape) for _ in weights]
    wanted = torch.autograd.grad(maps, leaves, [each.double() for each in grads])
    grad_x, taps = branches.gradients(grads, x, weights, True, [True] * len(weights))
    assert_close('grad_x', grad_x, wanted[0], OUTPUT)
    for mine, theirs in zip(taps, wanted[1:], strict=True):
        assert_close('taps', mine, theirs, PARAMETER)
    alone, nothing = branches.gradients(grads, x, weights, True, [False] * len(weights))
    assert torch.equal(alone, grad_x) and not any(each is not None for each in nothing)
    nothing, alone = branches.gradients(grads, x, weights, False, [True] * len(weights))
    assert nothing is None and all(torch.equal(*each) for each in zip(alone, taps))


@pytest.mark.parametrize('case', ['small', 'square', 'bands'])
def test_vectors_of_another_processor(case, monkeypatch):
    x, weights, _, _ = problem(case)
    grads = [last(x.shape) for _ in weights]
    wanted = [True] * len(weights)

    def run(floats):
        monkeypatch.setattr(branches, 'lanes', lambda: floats)
        maps, moments, _ = branches.with_moments(x, weights)
        grad_x, taps = branches.gradients(grads, x, weights, True, wanted)
        return pixels_last(maps, x), moments, grad_x, *taps

    for mine, theirs in zip(run(8), run(16), strict=True):
        assert_close('result', mine, theirs, PARAMETER)


def found(scales, shift):
    """The table of `branch_norms.statistics` for given numbers, and the means in float64."""
    means, rests, inverses = torch.randn(3, *scales.shape)
    rests = rests * 1e-3
    rows = torch.stack((means, scales, rests, inverses.abs()), 1).flatten(0, 1)
    return torch.cat((rows, shift[None])), means.double() - rests.double(), inverses.abs()


@pytest.mark.parametrize('case', CASES)
def test_passes_of_the_norms_equal_float64(case):
    x, weights, leaves, maps = problem(case)
    count, channels = len(weights), x.shape[1]
    held = [each.detach().float() for each in maps]
    stack, held = blocked(held), torch.stack(held).double()
    scales, shift, grad = torch.randn(count, channels), torch.randn(channels), last(x.shape)
    table, means, inverses = found(scales, shift)
    centred = [each - per_channel(mean) for each, mean in zip(held, table[:-1:4])]
    wanted = sum(z * per_channel(scale) for z, scale in zip(centred, scales)) + per_channel(shift)
    assert_close('affine', branch_norms.affine(stack, table, x), wanted, OUTPUT)

    sums, flows = branch_norms.totals(grad, stack, table)
    centred = [each - per_channel(mean) for each, mean in zip(held, means)]
    products = [(z * grad).sum((0, 2, 3)) * inverse for z, inverse in zip(centred, inverses)]
    wanted = torch.stack([grad.double().sum((0, 2, 3)), *products])
    assert_close('sums', sums, wanted, PARAMETER)
    share = -channels / x.numel()
    gradients = [
        per_channel(scale)
        * (grad + share * (per_channel(wanted[0]) + per_channel(inverse * product) * z))
        for scale, inverse, product, z in zip(scales, inverses, products, centred)
    ]
    grad_x, taps = branches.gradients([grad], x, weights, True, [True] * count, stack, flows)
    wanted = torch.autograd.grad(maps, leaves, gradients)
    assert_close('grad_x', grad_x, wanted[0], 2 * OUTPUT)
    for mine, theirs in zip(taps, wanted[1:], strict=True):
        assert_close('taps', mine, theirs, PARAMETER)


@pytest.mark.parametrize('case', [each for each in CASES if each != 'pixel'])
def test_statistics_equal_float64(case):
    x, weights, _, _ = problem(case)
    count, channels = len(weights), x.shape[1]
    running, eps, momenta = torch.rand(count, 4, channels), [1e-5, 1e-3, 0.1], [0.1, 0.7, 0.0]
    weight, bias, mean, variance = running.double().unbind(1)
    maps, moments, bands = branches.with_moments(x, weights)
    table = branch_norms.statistics(
        moments, x.shape, bands, [each.unbind() for each in running], eps, momenta
    )
    # The statistics are those of the rounded map.
    maps = pixels_last(maps, x).double()
    means, variances = maps.mean((1, 2, 3)), maps.var((1, 2, 3), correction=0)
    got_mean, scale, rest, inverse = table[:-1].view(count, 4, channels).double().unbind(1)
    assert_close('mean', got_mean - rest, means, 1e-7)
    wanted = (variances + torch.tensor(eps[:count]).double()[:, None]).rsqrt()
    assert_close('inverse', inverse, wanted, 1e-6)
    assert_close('scale', scale, wanted * weight, 1e-6)
    assert_close('shift', table[-1], (bias + scale * rest).sum(0), 1e-6)
    pixels = x.numel() // channels
    share = torch.tensor(momenta[:count]).double()[:, None]
    assert_close('running mean', running[:, 2], torch.lerp(mean, means, share), 1e-6)
    assert_close(
        'running variance',
        running[:, 3],
        torch.lerp(variance, variances * (pixels / (pixels - 1)), share),
        1e-6,
    )


def norms(weights, **options):
    made = [nn.BatchNorm2d(each.shape[0], **options) for each in weights]
    for norm in made:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    return made


@pytest.mark.parametrize('offset', [0.0, 300.0])
def test_batch_norm_keeps_its_digits_far_from_zero(offset):
    """Kernels of one tap: the branches' means are large next to their deviations."""
    x = last((2, 19, 33, 17), offset).requires_grad_()
    weights = [torch.full((19, 1, 1, 1), value, requires_grad=True) for value in (1.0, -2.0)]
    made = norms(weights)
    exact = copy.deepcopy(made)
    leaves = [each.detach().double().requires_grad_() for each in (x, *weights)]
    y = large_kernel_normed(x, weights, [own_batch(norm) for norm in made])
    wanted = sum(
        norm.double()(leaves[0] * weight.view(-1, 1, 1)) for norm, weight in zip(exact, leaves[1:])
    )
    assert_close('y', y, wanted, 2 * OUTPUT)
    for mine, theirs in zip(made, exact):
        assert_close('mean', mine.running_mean, theirs.running_mean, OUTPUT)
        assert_close('variance', mine.running_var, theirs.running_var, OUTPUT)
    grad = last(x.shape)
    parameters = [each for norm in made for each in norm.parameters()]
    theirs = [each for norm in exact for each in norm.parameters()]
    got = torch.autograd.grad(y, [x, *parameters], grad)
    want = torch.autograd.grad(wanted, [leaves[0], *theirs], grad.double())
    assert_close('grad_x', got[0], want[0], 2 * OUTPUT)
    for mine, theirs in zip(got[1:], want[1:]):
        assert_close('parameter', mine, theirs, PARAMETER)


def test_nothing_is_written_beyond_the_results(monkeypatch):
    """Every tensor made here lies between sentinels."""
    frames = []

    def framed(shape):
        size = torch.Size(shape).numel()
        whole = torch.full((size + 64,), 7.0)
        frames.append((whole, size))
        return whole[32 : 32 + size].view(*shape)

    x, weights, _, _ = problem('tall')
    grad, table, norm = last(x.shape), torch.randn(13, 17), torch.rand(4, 17).unbind()
    monkeypatch.setattr(
        torch,
        'empty_like',
        lambda like, **_: framed(like.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2),
    )
    for name in ('new_empty', 'new_zeros'):
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, shape: framed(
                tuple(shape if isinstance(shape, tuple) else (shape,))
            ).zero_(),
        )
    branches.summed(x, weights, None)
    maps, moments, bands = branches.with_moments(x, weights)
    branch_norms.statistics(moments, x.shape, bands, [norm] * 3, [1e-5] * 3, [0.1] * 3)
    branch_norms.affine(maps, table, x)
    _, flows = branch_norms.totals(grad, maps, table)
    branches.gradients([grad], x, weights, True, [True] * 3, maps, flows)
    monkeypatch.undo()
    assert len(frames) >= 8
    for whole, size in frames:
        assert (whole[:32] == 7).all() and (whole[32 + size :] == 7).all()


@pytest.mark.parametrize('case', ['square', 'bands'])
def test_threads_do_not_change_a_bit(case, monkeypatch):
    monkeypatch.setattr(jit.engine.Compiled, 'WORTH_A_THREAD', 1)
    x, weights, _, _ = problem(case)
    grad, norm = last(x.shape), torch.rand(4, x.shape[1]).unbind()

    def run():
        maps, moments, bands = branches.with_moments(x, weights)
        table = branch_norms.statistics(moments, x.shape, bands, [norm] * 2, [1e-5] * 2, [0.0] * 2)
        sums, flows = branch_norms.totals(grad, maps, table)
        grad_x, taps = branches.gradients([grad], x, weights, True, [True] * 2, maps, flows)
        y = branch_norms.affine(maps, table, x)
        return pixels_last(maps, x), table, y, sums, flows, grad_x, *taps

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run()
        torch.set_num_threads(2)
        assert all(torch.equal(*each) for each in zip(alone, run()))
    finally:
        torch.set_num_threads(threads)


def test_without_compiled_loops_torch_computes(monkeypatch):
    x, weights, _, maps = problem('tall')
    assert branches.refusal(x, weights) is None
    assert 'float32' in branches.refusal(x.double(), weights)
    assert 'plain float32' in branches.refusal(x, weights, torch.empty(17, device='meta'))
    assert 'empty' in branches.refusal(x[:0], weights)
    assert 'square' in branches.refusal(x, [torch.randn(17, 1, 13, 13)])
    monkeypatch.setenv('MMLK_JIT', '0')
    monkeypatch.setattr(branches, '_forward', None)
    assert 'MMLK_JIT' in branches.refusal(x, weights)
    assert_close('sum', large_kernel_sum(x, weights), sum(maps), 2 * OUTPUT)
    for mine, theirs in zip(large_kernel_branches(x, weights), maps, strict=True):
        assert_close('map', mine, theirs, OUTPUT)
    y = large_kernel_normed(x, weights, [own_batch(norm) for norm in norms(weights)])
    assert torch.isfinite(y).all()

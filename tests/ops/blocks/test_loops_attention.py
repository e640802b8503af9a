"""Compiled linear attention and its gradients against the formula in float64."""

import pytest
import torch
import torch.nn.functional as F

from mmlk.ops import jit
from mmlk.ops.blocks import loops_attention as attention
from tests.cases import TOLERANCE, assert_close

pytestmark = pytest.mark.skipif(
    jit.refusal() is not None, reason=f'no compiled loops: {jit.refusal()}'
)

LIMIT = TOLERANCE[torch.float32][0]
EPSILON = 1e-3
# Images, pixels, heads, channels of a head: whole and partial vectors, tiles and chunks.
SHAPES = [
    (1, 3, 1, 1),
    (2, 9, 3, 5),
    (2, 25, 2, 16),
    (1, 48, 2, 32),
    (2, 101, 3, 20),
    (1, 13, 2, 40),
    (3, 49, 1, 64),
    (1, 400, 2, 7),
]
NAMES = 'out', 'grad_scores', 'grad_x'


def problem(shape):
    n, length, heads, depth = shape
    generator = torch.Generator().manual_seed(sum(shape))
    return [
        torch.randn(n, length, count * heads * depth, generator=generator) for count in (1, 2, 1)
    ]


def run(x, scores, grad, heads):
    out, summary = attention.forward(x, scores, heads, EPSILON)
    return out, *attention.backward(grad, x, scores, out, summary, heads, EPSILON)


def exact(x, scores, grad, heads):
    x, scores = (each.double().requires_grad_() for each in (x, scores))
    value, *both = (
        each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (x, *scores.chunk(2, -1))
    )
    query, key = (F.elu(each) + 1 for each in both)
    weights = query @ key.transpose(-1, -2)
    out = (weights @ value) / (weights + EPSILON).sum(-1, keepdim=True)
    out = out.transpose(1, 2).flatten(2)
    return out, *torch.autograd.grad(out, (scores, x), grad.double())


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_equals_float64(shape):
    given, heads = problem(shape), shape[2]
    for name, got, want in zip(NAMES, run(*given, heads), exact(*given, heads), strict=True):
        assert_close(name, got, want, LIMIT)


def test_scores_far_from_zero():
    x, scores, grad = problem((1, 30, 2, 16))
    scores = torch.where(scores > 0, scores * 100, scores * 4)
    for name, got, want in zip(NAMES, run(x, scores, grad, 2), exact(x, scores, grad, 2)):
        assert_close(name, got, want, LIMIT)


def test_nothing_is_written_beside_the_results(monkeypatch):
    x, scores, grad = problem((2, 23, 3, 20))
    guarded, plain = [], torch.empty_like

    def padded(like):
        guarded.append(torch.full((like.numel() + 64,), 7.0))
        return guarded[-1][32:-32].view(like.shape)

    monkeypatch.setattr(torch, 'empty_like', padded)
    results = run(x, scores, grad, 3)
    monkeypatch.setattr(torch, 'empty_like', plain)
    assert len(guarded) == 3
    for each in guarded:
        assert (each[:32] == 7).all() and (each[-32:] == 7).all()
    for name, got, want in zip(NAMES, results, exact(x, scores, grad, 3), strict=True):
        assert_close(name, got, want, LIMIT)


def test_what_is_not_a_number_stays_in_its_image_and_head():
    x, scores, _ = problem((2, 11, 2, 16))
    scores[0, 3, 4] = torch.nan
    out, _ = attention.forward(x, scores, 2, EPSILON)
    assert out[0, 3, :16].isnan().all()
    assert out[0, :, 16:].isfinite().all() and out[1].isfinite().all()


def test_threads_change_no_bit():
    given, before = problem((2, 200, 4, 32)), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run(*given, 4))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def test_wrong_operands_raise():
    x, scores, _ = problem((2, 5, 2, 8))
    with pytest.raises(ValueError, match='scores'):
        attention.forward(x, x, 2, EPSILON)
    with pytest.raises(ValueError, match='x '):
        attention.forward(x.transpose(0, 1), scores, 2, EPSILON)
    with pytest.raises(ValueError, match='grad'):
        attention.backward(scores, x, scores, x, x, 2, EPSILON)
    assert not attention.can_run(65, x) and not attention.can_run(8, x.double())
    assert attention.can_run(8, x, scores)

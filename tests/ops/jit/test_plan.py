"""Recorded runs of operators, and where their intermediate results are."""

import random

import pytest
import torch
import torch.nn.functional as F

from mmlk.ops import depthwise_conv2d, jit, plans
from mmlk.ops.jit import recording
from mmlk.ops.jit.arena import ALIGNMENT, Lifetime, arranged
from mmlk.ops.jit.plan import LARGEST

needs_loops = pytest.mark.skipif(
    jit.refusal() is not None, reason=f'no compiled loops: {jit.refusal()}'
)


def test_blocks_that_are_needed_at_once_do_not_overlap():
    draw = random.Random(0)
    for _ in range(15):
        blocks = []
        for _ in range(40):
            first = draw.randrange(30)
            blocks.append(Lifetime(draw.randrange(1, 5000), first, draw.randrange(first, 31)))
        offsets, size = arranged(blocks)
        memory = [bytearray(size) for _ in range(31)]
        for block, offset in zip(blocks, offsets):
            assert offset % ALIGNMENT == 0
            for step in range(block.first, block.last + 1):
                place = memory[step][offset : offset + block.size]
                assert len(place) == block.size and not any(place)
                memory[step][offset : offset + block.size] = b'1' * block.size


def test_blocks_one_after_the_other_share_their_place():
    blocks = [Lifetime(1000, step, step + 1) for step in range(0, 20, 2)]
    assert arranged(blocks) == ([0] * 10, 1024)
    assert arranged([]) == ([], 0)


WEIGHT = torch.randn(32, 1, 7, 7)
X = torch.randn(1, 32, 16, 16).contiguous(memory_format=torch.channels_last)


def conv(x):
    return depthwise_conv2d(x, WEIGHT)


@torch.no_grad()
def recorded(function, *constants):
    _, plan, _ = plans.record(function, X, [WEIGHT, *constants])
    return plan


@needs_loops
def test_a_plan_repeats_launches_and_operators():
    kept = torch.randn(1, 32, 16, 16).contiguous(memory_format=torch.channels_last)

    def function(x):
        y = conv(conv(x))
        z = F.gelu(y[:, :16])
        scratch = torch.empty_like(y)
        torch.mul(conv(y), kept, out=scratch)
        return conv(torch.cat((z, scratch[:, 16:]), 1)), scratch.permute(0, 2, 3, 1), z[:, 3:]

    plan = recorded(function, kept)
    assert plan.launches == 4 and plan.operators == 3 and plan.series == 3
    for _ in range(3):
        x = torch.randn(X.shape).contiguous(memory_format=torch.channels_last)
        kept.add_(1)
        with torch.no_grad():
            for got, want in zip(plan(x), function(x), strict=True):
                assert torch.equal(got, want) and got.stride() == want.stride()


UNREPEATABLE = {
    'random numbers': lambda x: [conv(F.dropout(conv(x), 0.5))],
    'a value': lambda x: [conv(x) * conv(x).sum().item()],
    'a shape that depends on values': lambda x: [conv(x)[conv(x) > 0]],
    'the input': lambda x: [conv(x), x],
    'the input is written': lambda x: [conv(x.add_(1))],
    'a parameter is written': lambda x: [conv(x + WEIGHT.mul_(1).sum())],
    'unknown memory': lambda x: [depthwise_conv2d(x, torch.from_numpy(WEIGHT.numpy() * 1))],
    'an unknown operand': lambda x: [conv(x) + torch.from_numpy(X.numpy() * 1)],
    'a part of a result': lambda x: [conv(x)[:, 2:]],
    'another shape': lambda x: [conv(torch.empty(4, 4).resize_(X.shape).copy_(x))],
}


@needs_loops
@pytest.mark.parametrize('kind', UNREPEATABLE)
def test_what_cannot_be_repeated_safely_is_not(kind):
    reason = recorded(UNREPEATABLE[kind])
    assert isinstance(reason, str), kind
    assert recording.recorder() is None


@needs_loops
def test_large_results_have_no_plan():
    many = LARGEST // (X.numel() * 4)

    def function(x):
        wide = torch.empty(many + 1, *X.shape[1:])
        wide[:1].copy_(x)
        return [conv(wide[:1].contiguous(memory_format=torch.channels_last))]

    assert 'MB' in recorded(function)


@needs_loops
def test_an_error_ends_the_recording():
    with pytest.raises(ZeroDivisionError):
        recorded(lambda x: [conv(x), 1 / 0])
    assert recording.recorder() is None
    assert torch._C._len_torch_dispatch_stack() == 0

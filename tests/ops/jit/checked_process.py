"""What test_checks.py runs in a process whose compiled loops check their accesses."""

import sys

import torch

from mmlk.ops import depthwise_conv2d
from mmlk.ops.dense.loops_weight_gradient import weight_gradient
from mmlk.ops.jit import engine
from mmlk.ops.jit.address import address
from mmlk.ops.jit.language import LANES, kernel
from mmlk.ops.large_kernel import large_kernel_branches, large_kernel_sum
from tests.cases import DEPTHWISE_CASES
from tests.ops import fuzz
from tests.ops.operators import calls, outcome

SIZE = (2, 24, 11, 10)
"""Map (N, C, H, W) of the calls of all operators."""

STRIPS = (((51, 5), (5, 51), (5, 5)), ((31, 11), (11, 31)))
"""Sizes of SLaK's kernels."""
STRIP_MAPS = ((1, 20, 65, 70), (2, 3, 9, 14))
"""Maps (N, C, H, W): of several parts, and of fewer channels than a vector."""


def _gradients(function, *tensors):
    leaves = [each.detach().requires_grad_() for each in tensors]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    grads = torch.autograd.grad(results, leaves, [each.detach().cos() for each in results])
    return [*(each.detach() for each in results), *grads]


def every_operator():
    for name, call in calls(*SIZE).items():
        for gradients in (False, True):
            yield outcome(name, call.tensors(), gradients, call=call)
    # Operators take it for larger products only.
    grad, x = torch.randn(37, 21), torch.randn(37, 50)
    for extra in ({}, dict(bias=True, factors=torch.randn(21), y=torch.randn(37, 21))):
        yield [each for each in weight_gradient(grad, x, **extra) if each is not None]


def depthwise():
    for (n, c, h, w), size, stride in DEPTHWISE_CASES.values():
        x = torch.randn(n, h, w, c).permute(0, 3, 1, 2)
        weight, bias = torch.randn(c, 1, *size), torch.randn(c)
        yield _gradients(lambda *a, stride=stride: depthwise_conv2d(*a, stride), x, weight, bias)


def strips():
    for sizes in STRIPS:
        for n, c, h, w in STRIP_MAPS:
            x = torch.randn(n, h, w, c).permute(0, 3, 1, 2)
            weights = [torch.randn(c, 1, *size) for size in sizes]
            yield _gradients(lambda x, *w: tuple(large_kernel_branches(x, w)), x, *weights)
            yield [large_kernel_sum(x, weights, torch.randn(c))]


def random_calls():
    """Random calls of all operators in float32; each is compared with the reference as well."""
    for number in range(100):
        if fuzz.Case(0, number).dtype == torch.float32:
            fuzz.check(0, number)
    return []


SHARES = (every_operator, depthwise, strips, random_calls)


def compute(share):
    """Results of a share, and what was compiled for it and before."""
    torch.manual_seed(0)
    results = list(share())
    return results, sorted(engine._loaded)


@kernel('x_p y_p count')
def _copy(k, x, y, count, *, read, write):
    """Vectors, read and written that many floats away from where they should be."""
    with k.loop(0, count) as index:
        k.store(k.load(x, index * LANES + read), y, index * LANES + write)


@kernel('x_p y_p')
def _copy_scratch(k, x, y):
    """More than was reserved, by way of a routine."""
    copy = k.routine(
        'source_p target_p', lambda source, target: k.store(k.load(source, LANES), target)
    )
    memory = k.scratch(1)
    k.store(k.load(x), memory)
    copy(memory, y)


@kernel('x_p y_p')
def _copy_float_by_float(k, x, y):
    with k.loop(0, 4) as place:
        k.copy_float(k.at(x, place), k.at(y, place))


@kernel('x_p')
def _sum_further(k, x):
    k.store(k.load(k.further(1)), x)


def wrong_kernels():
    """Messages of calls that leave their operands, by name, and whether any wrote there."""
    memory = torch.zeros(8 * LANES)
    x, y = memory[LANES : 3 * LANES], memory[4 * LANES : 6 * LANES]
    runs = {
        'right': lambda: _copy(read=0, write=0)(2, 1, address(x), address(y), 1),
        'read behind': lambda: _copy(read=1, write=0)(1, 1, address(x), address(y), 2),
        'read before': lambda: _copy(read=-LANES, write=0)(1, 1, address(x), address(y), 2),
        'write behind': lambda: _copy(read=0, write=LANES)(1, 1, address(x), address(y), 2),
        'write before': lambda: _copy(read=0, write=-1)(1, 1, address(x), address(y), 2),
        'write to none': lambda: _copy(read=0, write=0)(1, 1, address(x), address(None), 1),
        'scratch': lambda: _copy_scratch()(1, 1, address(x), address(y)),
        'single floats': lambda: _copy_float_by_float()(1, 1, address(x), address(y[:3])),
        'further': lambda: _sum_further()(1, 1, address(x), address(y), address(y[:8])),
        'unknown address': lambda: _copy(read=0, write=0)(1, 1, x.data_ptr(), address(y), 1),
    }
    x.fill_(1.0)
    messages = {}
    for name, run in runs.items():
        try:
            run()
        except RuntimeError as error:
            messages[name] = str(error)
    beyond = torch.cat([memory[:LANES], memory[3 * LANES : 4 * LANES], memory[6 * LANES :]])
    return messages, bool(beyond.any())


if __name__ == '__main__':
    name, path = sys.argv[1:]
    share = {each.__name__: each for each in SHARES}.get(name)
    torch.save(compute(share) if share else wrong_kernels(), path)

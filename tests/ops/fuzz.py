"""Random calls of every public operator and module, compared with the reference in float64.

By hand: ``python -m tests.ops.fuzz --cases 20000 --seed 1``. A case follows from its number and the seed
alone, so a failing one is run again by ``--seed 1 --first 4711 --cases 1``. What a case may be: shapes
down to nothing, four dtypes, maps of any strides and storage offsets, expanded, sliced and reversed
operands, with gradients, without, and in inference mode.
"""

from __future__ import annotations

import argparse
import collections
import functools
import random
import traceback

import torch

import mmlk.ops as ops
from mmlk.ops.norm.batch_norm import BatchNormState
from tests.cases import TOLERANCE
from tests.ops import fuzz_modules

MODES = ('grad', 'no_grad', 'inference')
DTYPES = (torch.float32,) * 5 + (torch.float64, torch.bfloat16, torch.float16)


class Case:
    """Draws the operands of one call; ``number`` and ``seed`` decide everything."""

    def __init__(self, seed: int, number: int):
        self.random = random.Random(f'{seed}/{number}')
        torch.manual_seed(self.random.getrandbits(48))
        self.name = self.random.choice(sorted(CALLS))
        self.mode = self.random.choice(MODES)
        dtypes = (torch.float32, torch.float64) if self.name.startswith('dcls') else DTYPES
        self.dtype = torch.float32 if self.name in FLOAT32 else self.random.choice(dtypes)

    def size(self, *choices: int) -> int:
        return self.random.choice(choices)

    def map(self, channels: int) -> torch.Tensor:
        shape = [self.size(0, 1, 1, 2, 3), channels, *(self.size(1, 2, 5, 9, 16, 23) for _ in 'hw')]
        if self.random.random() < 0.03:
            shape[self.random.choice((2, 3))] = 0
        return self.tensor(shape, last=self.random.random() < 0.6)

    def like(self, x: torch.Tensor) -> torch.Tensor:
        return self.tensor(x.shape, last=self.random.random() < 0.6)

    def tensor(self, shape, last: bool = False, deviation: float = 1.0) -> torch.Tensor:
        """Values of a normal distribution in a memory of any order."""

        def draw(sizes) -> torch.Tensor:
            return deviation * torch.randn(sizes, dtype=self.dtype)

        shape = list(shape)
        if last:
            shape = [shape[0], *shape[2:], shape[1]]
        kind = self.random.choice(
            ('plain',) * 4 + ('offset', 'sliced', 'strided', 'expanded', 'transposed')
        )
        axis = self.random.randrange(len(shape))
        if kind == 'offset':
            step = self.random.randint(1, 7)
            count = int(torch.Size(shape).numel())
            x = draw(count + step)[step:].view(shape)
        elif kind == 'sliced':
            wider = list(shape)
            wider[axis] += 3
            x = draw(wider).narrow(axis, 2, shape[axis])
        elif kind == 'strided':
            wider = list(shape)
            wider[axis] *= 2
            x = draw(wider)
            x = x[(slice(None),) * axis + (slice(None, None, 2),)]
        elif kind == 'expanded':
            narrow = list(shape)
            narrow[axis] = 1
            x = draw(narrow).expand(shape)
        elif kind == 'transposed':
            x = draw(shape[::-1]).permute(*reversed(range(len(shape))))
        else:
            x = draw(shape)
        return x.permute(0, len(shape) - 1, *range(1, len(shape) - 1)) if last else x

    def maybe(self, shape) -> torch.Tensor | None:
        return self.tensor(shape) if self.random.random() < 0.7 else None

    def norm(self, channels: int) -> dict:
        return dict(weight=self.tensor([channels]), bias=self.tensor([channels]))

    def side(self) -> int:
        return self.size(1, 3, 5, 7, 11, 17)


def _state(weight, bias):
    wide = weight.dtype
    zeros = torch.zeros(weight.shape, dtype=wide)
    return BatchNormState(weight, bias, zeros, zeros + 1, torch.tensor(0), 0.1, 1e-5)


# Each draws the operands (tensors, None, or lists of these) and says how to call the operator with them.


def depthwise(case):
    c = case.size(1, 3, 8, 19)
    kernel = [c, 1, case.side(), case.side()]
    stride = (case.size(1, 1, 2), case.size(1, 1, 2, 3))
    return [case.map(c), case.tensor(kernel), case.maybe([c])], dict(stride=stride)


def expanding(case):
    c, m = case.size(1, 4, 9), case.size(1, 2, 3)
    kernel = [c * m, 1, case.side(), case.side()]
    return [case.map(c), case.tensor(kernel), case.maybe([c * m])], dict(stride=case.size(1, 2))


def pointwise(case):
    groups, c, o = case.size(1, 1, 2), case.size(1, 4, 11), case.size(1, 3, 8)
    x, weight = case.map(c * groups), case.tensor([o * groups, c, 1, 1])
    return [x, weight, case.maybe([o * groups])], {}


def patch(case):
    c, o, k = case.size(1, 3, 8), case.size(1, 5, 16), case.size(1, 2, 4)
    x = case.map(c)
    if min(x.shape[2:]) < k:
        x = case.tensor([1, c, 2 * k + 1, k])
    return [x, case.tensor([o, c, k, k]), case.maybe([o])], {}


def in_layout(case):
    form = case.random.choice((torch.contiguous_format, torch.channels_last))
    return [case.map(case.size(1, 3, 8, 19))], dict(memory_format=form)


def normed(case):
    c = case.size(1, 3, 16, 37)
    operands = [
        case.tensor([case.size(1, 5), case.size(1, 7), c]),
        case.maybe([c]),
        case.maybe([c]),
    ]
    return operands, dict(eps=case.random.choice((1e-6, 1e-5)))


def inception(case):
    g, rest = case.size(1, 2, 5), case.size(0, 1, 8)
    s, b = case.size(1, 3, 5), case.size(3, 9, 11)
    operands = [case.map(3 * g + rest)]
    for kernel in ([g, 1, s, s], [g, 1, 1, b], [g, 1, b, 1]):
        operands += [case.tensor(kernel), case.maybe([g])]
    return operands, {}


def large_branches(case):
    c, k, s = case.size(1, 4, 17), case.size(7, 13, 31), case.size(3, 5)
    kernels = [[c, 1, k, s], [c, 1, s, k], [c, 1, s, s]][: case.size(2, 3)]
    return [case.map(c), [case.tensor(each) for each in kernels]], {}


def large_sum(case):
    operands, options = large_branches(case)
    return [*operands, case.maybe([operands[0].shape[1]])], options


def large_normed(case):
    (x, weights), options = large_branches(case)
    if x.numel() // max(x.shape[1], 1) < 2:
        x = case.tensor([2, x.shape[1], 5, 3])
    return [x, weights, [case.norm(x.shape[1]) for _ in weights]], options


def recursive(case):
    c, level, k = case.size(1, 4, 9), case.size(0, 1, 2, 4), case.size(3, 5)
    # Five levels of larger kernels leave the range of 16 bits.
    down, *kernels = [case.tensor([c, 1, k, k], deviation=1 / k) for _ in range(level + 2)]
    mode = case.random.choice(('bilinear', 'nearest'))
    return [case.map(c), down, kernels], dict(mode=mode)


def mlp(case):
    c, h = case.size(1, 3, 16, 33), case.size(1, 8, 40)
    x = case.tensor([case.size(0, 1, 3), case.size(1, 6), case.size(1, 7), c])
    operands = [x, case.tensor([h, c]), case.tensor([h]), case.tensor([c, h]), case.tensor([c])]
    return [*operands, case.maybe([c])], {}


def linear(case):
    k, n = case.size(1, 3, 16, 33), case.size(1, 8, 40)
    rows = [case.size(0, 1, 3), case.size(1, 6)]
    operands = [case.tensor([*rows, k]), case.tensor([n, k]), case.maybe([n])]
    return [*operands, case.maybe([*rows, n])], dict(gelu=case.random.random() < 0.5)


def normed_conv_mlp(case):
    c, h = case.size(2, 8, 33), case.size(1, 8, 40)
    x = case.map(c)
    if x.numel() // c < 2:
        x = case.tensor([2, c, 5, 3])
    front = case.norm(c) if case.random.random() < 0.5 else None
    first, last = case.tensor([h, c, 1, 1]), case.tensor([c, h, 1, 1])
    return [x, case.like(x), front, first, case.norm(h), last, case.norm(c)], {}


def summed(case):
    c, stride = case.size(2, 8, 17), case.size(1, 2)
    x = case.map(c)
    if x.numel() // c < 8:
        x = case.tensor([2, c, 5, 3])
    n, _, h, w = x.shape
    kernel = case.tensor([c, 1, case.size(1, 3, 5), case.size(3, 5)])
    norm = case.norm(c) if case.random.random() < 0.5 else None
    coarse = case.maybe([n, c, (h + 1) // 2, (w + 1) // 2])
    onto = case.maybe([n, c, -(-h // stride), -(-w // stride)])
    options = dict(stride=(stride, stride))
    return [x, kernel, case.maybe([c]), norm, coarse, onto], options


def attention(case):
    heads = case.size(1, 2)
    c, q, groups = heads * case.size(2, 8, 20), heads * case.size(2, 8), case.size(1, 2)
    x = case.map(c)
    if x.numel() // c < 4:
        x = case.tensor([2, c, 3, 3])
    norm = case.norm(2 * q) if case.random.random() < 0.5 else None
    # Features far below zero have exponentials that the small term of the divisor hides.
    depth = c // groups
    weight = case.tensor([2 * q, depth, 1, 1], deviation=depth**-0.5)
    return [x, weight, case.maybe([2 * q]), norm], dict(heads=heads)


def constructed(dims):
    def draw(case):
        shape = [case.size(1, 6), case.size(1, 2), case.size(1, 3, 8)]
        version = case.random.choice(('v0', 'v1', 'max', 'gauss') if dims < 3 else ('v0', 'v1'))
        window = tuple(case.size(3, 7, 8) for _ in range(dims))
        sigma = case.tensor([dims, *shape]) if version in ('max', 'gauss') else None
        operands = [case.tensor(shape), case.tensor([dims, *shape]), sigma]
        return operands, dict(kernel_size=window, version=version)

    return draw


CALLS = {
    'depthwise_conv2d': depthwise,
    'expanding_depthwise_conv2d': expanding,
    'pointwise_conv2d': pointwise,
    'patch_conv2d': patch,
    'contiguous_map': in_layout,
    'layer_norm': normed,
    'inception_dwconv2d': inception,
    'large_kernel_branches': large_branches,
    'large_kernel_sum': large_sum,
    'large_kernel_normed': large_normed,
    'recconv2d': recursive,
    'channel_mlp': mlp,
    'folded_linear': linear,
    'conv_norm_mlp': normed_conv_mlp,
    'depthwise_sum': summed,
    'linear_attention2d': attention,
    'dcls_kernel1d': constructed(1),
    'dcls_kernel2d': constructed(2),
    'dcls_kernel3d': constructed(3),
    **{name: fuzz_modules.drawn(make) for name, make in fuzz_modules.MAKERS.items()},
}
# Blocks of layers with statistics; elsewhere they are the reference itself.
FLOAT32 = (
    'large_kernel_normed',
    'conv_norm_mlp',
    'depthwise_sum',
    'linear_attention2d',
    *fuzz_modules.MAKERS,
)
BY_NAME = {'depthwise_sum': ('coarse', 'onto')}


def _flat(operands):
    """The tensors in operands, nested lists and norms, in order."""
    for each in operands:
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, (list, tuple)):
            yield from _flat(each)
        elif isinstance(each, dict):
            yield from _flat(each.values())


def _mapped(operands, change):
    if isinstance(operands, torch.Tensor):
        return change(operands)
    if isinstance(operands, list):
        return [_mapped(each, change) for each in operands]
    if isinstance(operands, dict):
        return {key: _mapped(each, change) for key, each in operands.items()}
    return operands


def _call(function, name, operands, options):
    def built(each):
        if isinstance(each, dict):
            return _state(**each)
        return [built(one) for one in each] if isinstance(each, list) else each

    operands, options = [built(each) for each in operands], dict(options)
    for key in reversed(BY_NAME.get(name, ())):
        options[key] = operands.pop()
    result = function(*operands, **options)
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _results(function, case, operands, options, cotangents=None):
    """Outputs, gradients of the operands, and the cotangents they are for."""
    if case.mode != 'grad':
        with torch.inference_mode() if case.mode == 'inference' else torch.no_grad():
            return _call(function, case.name, operands, options), [], None
    operands = _mapped(operands, lambda each: each.detach().requires_grad_())
    outputs = _call(function, case.name, operands, options)
    if cotangents is None:
        cotangents = [torch.randn(y.shape, dtype=y.dtype) for y in outputs]
    grads = torch.autograd.grad(
        outputs,
        list(_flat(operands)),
        [each.to(y.dtype) for each, y in zip(cotangents, outputs)],
        allow_unused=True,
    )
    return outputs, list(grads), cotangents


def _errors(got, want, tolerance, floor):
    """Largest error of each tensor and its bound, by index."""
    found = {}
    for index, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        if mine is None or theirs is None:
            empty = mine if theirs is None else theirs
            assert empty is None or not empty.any(), f'{index}: one has a gradient, the other none'
            continue
        assert mine.shape == theirs.shape, (
            f'{index}: {tuple(mine.shape)}, not {tuple(theirs.shape)}'
        )
        if theirs.numel():
            error = (mine.double() - theirs).abs().max().item()
            found[index] = error, tolerance * max(theirs.abs().max().item(), floor)
    return found


def _assert_close(what, got, want, tolerance, floor, rounded):
    """Errors in bounds, or else no larger than those of the reference in the operands' own dtype.

    Variances close to zero, sums that cancel and GELU's tail are not the operator's fault;
    ``rounded`` computes what the reference makes of them.
    """
    for index, (error, bound) in _errors(got, want, tolerance, floor).items():
        if error <= bound:
            continue
        other, _ = _errors(rounded(), want, tolerance, floor)[index]
        assert error <= max(other, min(3 * other, 100 * bound)), (
            f'{what} {index} ({got[index].dtype}): error {error:.3g} > {bound:.3g}, '
            f'of the reference {other:.3g}'
        )


def check(seed: int, number: int) -> tuple[str, str]:
    """Run one case; its operator and mode. Raises AssertionError with the case where results differ."""
    case = Case(seed, number)
    operands, options = CALLS[case.name](case)
    exact = _mapped(operands, lambda each: each.detach().double())
    before = [each.clone() for each in _flat(operands)]
    # Without gradients the sum may take the memory of `onto`, as documented.
    spared = 1 if case.name == 'depthwise_sum' and operands[-1] is not None else 0
    words = [f'{tuple(each.shape)}/{each.stride()}' for each in _flat(operands)]
    label = f'case {number}, seed {seed}: {case.name} {case.mode} {case.dtype} {words} {options}'
    try:
        if case.name in fuzz_modules.MAKERS:
            function, reference = fuzz_modules.call, fuzz_modules.call_reference
        else:
            function = getattr(ops, case.name)
            reference = getattr(ops, f'{case.name}_reference')
        try:
            wanted, wanted_grads, cotangents = _results(reference, case, exact, options)
        except RuntimeError as refusal:
            # torch convolves no map without pixels.
            if any(words in str(refusal) for words in ('zero batch', 'padded input size')):
                return case.name, case.mode
            raise
        outputs, grads, _ = _results(function, case, operands, options, cotangents)
        for kept, now in list(zip(before, _flat(operands)))[: len(before) - spared]:
            assert torch.equal(kept, now), 'an operand was written'
        output, parameter = TOLERANCE[case.dtype]
        slack = SLACK[case.dtype]
        scale = max((each.abs().max().item() for each in wanted if each.numel()), default=1.0)
        for index, mine in enumerate(outputs):
            assert mine.dtype == case.dtype, f'output {index} is {mine.dtype}'

        @functools.cache
        def rounded():
            same = _mapped(exact, lambda each: each.to(case.dtype))
            return _results(reference, case, same, options, cotangents)[:2]

        for index, (what, got, want, tolerance, floor) in enumerate(
            [
                ('output', outputs, wanted, output, scale),
                ('gradient', grads, wanted_grads, parameter, 1.0),
            ]
        ):
            _assert_close(what, got, want, slack * tolerance, floor, lambda i=index: rounded()[i])
    except Exception as error:
        raise AssertionError(f'{label}: {type(error).__name__}: {error}') from error
    return case.name, case.mode


# Chains of several layers round several times; a wrong result is off by far more.
SLACK = {torch.float64: 100, torch.float32: 20, torch.bfloat16: 8, torch.float16: 16}


def table(counts) -> str:
    """Cases by operator and mode."""
    lines = [f'{"operator":28}' + ''.join(f'{mode:>11}' for mode in MODES)]
    for name in sorted(CALLS):
        lines.append(f'{name:28}' + ''.join(f'{counts[name, mode]:11}' for mode in MODES))
    return '\n'.join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--cases', type=int, default=2000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--first', type=int, default=0, help='number of the first case')
    options = parser.parse_args()
    counts, failures = collections.Counter(), 0
    for number in range(options.first, options.first + options.cases):
        try:
            counts[check(options.seed, number)] += 1
        except AssertionError as error:
            failures += 1
            print(error, flush=True)
            if options.cases == 1:
                traceback.print_exc()
    print(table(counts))
    print(f'{sum(counts.values())} cases passed, {failures} failed, seed {options.seed}')
    return min(failures, 1)


if __name__ == '__main__':
    raise SystemExit(main())

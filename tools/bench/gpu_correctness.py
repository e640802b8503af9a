"""The correctness sections of `run_gpu_checks.py`."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from benchmark_cases import Case, depthwise, inception
from gpu_cases import PARITY, inputs
from gpu_runner import Task
from torch import Tensor

from mmlk import networks, ops
from mmlk.ops.reference import depthwise_conv2d_reference
from tests.cases import MICRO_ARCHS, TOLERANCE

LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
TYPES = {
    'bfloat16': torch.bfloat16,
    'float32': torch.float32,
    'tf32': torch.float32,
    'float16': torch.float16,
}
"""Types of maps by name; ``tf32`` is float32 as torch convolves it where nothing is set."""


@contextlib.contextmanager
def float32_as(tf32: bool) -> Iterator[None]:
    """Convolutions and products of float32 tensors by TF32, or without it."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Freed and new memory full of NaN, so that an element nobody writes is seen."""
    names = ((torch, 'empty'), (torch, 'empty_like'), (torch.Tensor, 'new_empty'))
    before = [getattr(*each) for each in names]

    def filled(allocate: Callable) -> Callable:
        def call(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float('nan')) if tensor.is_floating_point() else tensor

        return call

    for (owner, name), allocate in zip(names, before):
        setattr(owner, name, filled(allocate))
    try:
        yield
    finally:
        for (owner, name), allocate in zip(names, before):
            setattr(owner, name, allocate)


def results(
    function: Callable, leaves: Sequence[Tensor], cotangent: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Output and gradients, under autocast for 16-bit types."""
    with torch.autocast('cuda', dtype, enabled=dtype != torch.float32):
        y = function(*leaves)
    return [y, *torch.autograd.grad(y, leaves, cotangent.to(y.dtype))]


def worst_error(got: Sequence[Tensor], want: Sequence[Tensor], dtype: torch.dtype) -> float:
    """Largest error as a multiple of its tolerance; parameters have a tolerance of their own."""
    worst = 0.0
    for index, (mine, theirs) in enumerate(zip(got, want)):
        scale = max(theirs.abs().max().item(), 1e-6) if theirs.numel() else 1.0
        error = (mine.double() - theirs).abs().max().item() / scale if mine.numel() else 0.0
        error = math.inf if math.isnan(error) else error
        worst = max(worst, error / TOLERANCE[dtype][index > 1])
    return worst


def check_case(case: Case, name: str, layout: str) -> dict:
    """One case against float64, and against itself; ``name`` is one of `TYPES`."""
    dtype = TYPES[name]
    torch.manual_seed(0)
    leaves = inputs(case, dtype, LAYOUTS[layout])
    wide = [each.detach().double().requires_grad_() for each in leaves]
    want = case.native(*wide)
    cotangent = torch.randn_like(want).to(dtype)
    want = [want, *torch.autograd.grad(want, wide, cotangent.double())]
    with poisoned(), float32_as(tf32=name == 'tf32'):
        got = results(case.ours, leaves, cotangent, dtype)
        again = results(case.ours, leaves, cotangent, dtype)
    # TF32 has as many digits as float16.
    error = worst_error(got, want, torch.float16 if name == 'tf32' else dtype)
    text = 'ok' if all(torch.equal(a, b) for a, b in zip(got, again)) else 'failed: repeats differ'
    if not error <= 1:
        text = f'failed: error {error:.2f} of the tolerance'
    return {
        'case': case.name,
        'shape': case.shape,
        'type': name,
        'layout': layout,
        'error_over_tolerance': round(error, 4),
        'result': text,
    }


def _check_by_number(index: int, name: str, layout: str) -> dict:
    return check_case(PARITY[index], name, layout)


def _parity(args: argparse.Namespace, types: Sequence[str]) -> list[Task]:
    return [
        Task(f'{case.name} {case.shape} {name} {layout}', _check_by_number, (index, name, layout))
        for name in types
        for index, case in enumerate(PARITY)
        for layout in LAYOUTS
        if args.filter in case.name and not (args.small and math.prod(case.shape) > 30_000)
    ]


def parity(args: argparse.Namespace) -> list[Task]:
    """Output and gradients of every operator in bfloat16 against float64."""
    return _parity(args, ('bfloat16',))


def exact(args: argparse.Namespace) -> list[Task]:
    """The same in float32, strictly and by TF32, and in float16."""
    return _parity(args, ('float32', 'tf32', 'float16'))


# ---------------------------------------------------------------------------------- limits


def check(function: Callable[..., str | None], *arguments: object) -> dict:
    """A row: ok, or the reason that ``function`` returns."""
    reason = function(*arguments)
    text = (
        'ok' if reason is None else reason if reason.startswith('skipped') else f'failed: {reason}'
    )
    return {'check': ' '.join([function.__name__, *map(str, arguments)]), 'result': text}


def _task(function: Callable[..., str | None], *arguments: object) -> Task:
    name = ' '.join([function.__name__, *map(str, arguments)])
    return Task(name, check, (function, *arguments))


def _differs(got: Sequence[Tensor], want: Sequence[Tensor]) -> str | None:
    return None if all(torch.equal(a, b) for a, b in zip(got, want)) else 'results differ'


def large_map(layout: str) -> str | None:
    """The last image of a map of more than 2^31 elements equals the same image alone."""
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        return 'skipped: needs 40 GiB'
    shape = (170, 96, 368, 368)  # 2.21e9 elements
    x = torch.zeros(shape, dtype=torch.bfloat16, device='cuda').to(memory_format=LAYOUTS[layout])
    x[-1].normal_()
    weight = torch.randn(96, 1, 7, 7, device='cuda', dtype=torch.bfloat16)
    with torch.no_grad():
        y = ops.depthwise_conv2d(x, weight)
        alone = ops.depthwise_conv2d(x[-1:], weight)
        want = depthwise_conv2d_reference(x[-1:, :, :64, :64].double(), weight.double())
    if not torch.equal(y[-1:], alone):
        return 'the last image differs from the same image alone'
    error = (y[-1:, :, :60, :60] - want[:, :, :60, :60]).abs().max() / want.abs().max()
    return None if error < TOLERANCE[torch.bfloat16][0] else f'error {error:.2e}'


def other_stream(number: int) -> str | None:
    """Work on a stream of its own gives what the default stream gives."""
    case = _limit_cases()[number]
    leaves = inputs(case, torch.bfloat16, torch.channels_last)
    cotangent = torch.randn_like(leaves[0])
    want = results(case.ours, leaves, cotangent, torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        got = results(case.ours, leaves, cotangent, torch.bfloat16)
    torch.cuda.current_stream().wait_stream(stream)
    return _differs(got, want)


def graph(number: int) -> str | None:
    """A captured forward and backward pass, replayed on new values, equals the eager one."""
    case = _limit_cases()[number]
    leaves = inputs(case, torch.bfloat16, torch.channels_last)
    cotangent = torch.randn_like(leaves[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            results(case.ours, leaves, cotangent, torch.bfloat16)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        got = results(case.ours, leaves, cotangent, torch.bfloat16)
    with torch.no_grad():
        leaves[0].normal_()
        cotangent.normal_()
    captured.replay()
    torch.cuda.synchronize()
    return _differs(got, results(case.ours, leaves, cotangent, torch.bfloat16))


def other_device() -> str | None:
    """Tensors of the second device, while the first is current."""
    if torch.cuda.device_count() < 2:
        return 'skipped: one device'
    x, weight = torch.randn(2, 8, 20, 20, device='cuda:1'), torch.randn(8, 1, 7, 7, device='cuda:1')
    return _differs(
        [ops.depthwise_conv2d(x, weight).cpu()],
        [ops.depthwise_conv2d(x.to('cuda:0'), weight.to('cuda:0')).cpu()],
    )


def _limit_cases() -> list[Case]:
    shape = (4, 96, 28, 28)
    return [
        inception(shape),
        depthwise(shape, (7, 7)),
        depthwise(shape, (17, 17)),
        *(each for each in PARITY if 'RecConv' in each.name or 'operator' in each.name),
    ]


def limits(args: argparse.Namespace) -> list[Task]:
    """More than 2^31 elements, other streams, CUDA graphs, other devices."""
    cases = [number for number, case in enumerate(_limit_cases()) if args.filter in case.name]
    return [
        *(_task(each, number) for number in cases for each in (other_stream, graph)),
        *(_task(large_map, layout) for layout in LAYOUTS),
        _task(other_device),
    ]


# ---------------------------------------------------------------------------------- compile


def _compile_cases() -> list[Case]:
    shape = (2, 96, 28, 28)
    one_each = [
        next(each for each in PARITY if word in each.name)
        for word in ('operator', 'RecConv', 'DCLS')
    ]
    return [inception(shape), depthwise(shape, (7, 7)), depthwise(shape, (17, 17)), *one_each]


def compiled_operator(number: int, name: str) -> str | None:
    """One full graph, with the values of eager mode."""
    case, dtype = _compile_cases()[number], TYPES[name]
    torch._dynamo.reset()
    leaves = inputs(case, dtype, torch.channels_last)
    cotangent = torch.randn_like(case.ours(*leaves) if dtype == torch.float32 else leaves[0])
    with float32_as(tf32=False):
        want = results(case.ours, leaves, cotangent, dtype)
        got = results(torch.compile(case.ours, fullgraph=True), leaves, cotangent, dtype)
    error = worst_error(got, [each.double() for each in want], dtype)
    return None if error <= 2 else f'error {error:.2f} of the tolerance'


def compiled_backbone(name: str) -> str | None:
    """A micro backbone in one graph, forward and backward under autocast."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = getattr(networks, name)(arch=MICRO_ARCHS[name]).cuda()
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 96, 96, device='cuda').to(memory_format=torch.channels_last)
    with torch.autocast('cuda', torch.bfloat16):
        outputs = torch.compile(model, fullgraph=True)(x)
    sum(each.float().square().mean() for each in outputs).backward()
    finite = all(
        each.grad is not None and each.grad.isfinite().all()
        for each in model.parameters()
        if each.requires_grad
    )
    return None if finite else 'a gradient is missing or not finite'


def compiled(args: argparse.Namespace) -> list[Task]:
    """Full graphs of operators and networks; eager and compiled agree."""
    cases = [number for number, case in enumerate(_compile_cases()) if args.filter in case.name]
    return [
        *(
            _task(compiled_operator, number, name)
            for name in ('bfloat16', 'float32')
            for number in cases
        ),
        *(_task(compiled_backbone, name) for name in MICRO_ARCHS if args.filter in name),
    ]

"""The correctness sections of `run_gpu_checks.py`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from benchmark_cases import Case, depthwise, inception
from gpu_cases import PARITY, inputs
from torch import Tensor

from mmlk import ops
from mmlk.ops.reference import depthwise_conv2d_reference
from tests.cases import MICRO_ARCHS, TOLERANCE

LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@contextlib.contextmanager
def strict_float32() -> Iterator[None]:
    """Convolutions and products in float32 without TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
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


def check_case(case: Case, dtype: torch.dtype, layout: str) -> dict:
    """One case against float64, and against itself."""
    torch.manual_seed(0)
    leaves = inputs(case, dtype, LAYOUTS[layout])
    wide = [each.detach().double().requires_grad_() for each in leaves]
    want = case.native(*wide)
    cotangent = torch.randn_like(want).to(dtype)
    want = [want, *torch.autograd.grad(want, wide, cotangent.double())]
    with poisoned():
        got = results(case.ours, leaves, cotangent, dtype)
        again = results(case.ours, leaves, cotangent, dtype)
    error = worst_error(got, want, dtype)
    equal = all(torch.equal(a, b) for a, b in zip(got, again))
    text = (
        'ok'
        if error <= 1 and equal
        else (
            f'failed: error {error:.2f} of the tolerance' if error > 1 else 'failed: repeats differ'
        )
    )
    return {
        'case': case.name,
        'shape': case.shape,
        'dtype': str(dtype),
        'layout': layout,
        'error_over_tolerance': round(error, 4),
        'result': text,
    }


def _parity_job(index: int, dtype: torch.dtype, layout: str) -> dict:
    case = PARITY[index]
    with strict_float32():
        try:
            return check_case(case, dtype, layout)
        except Exception as error:
            return {
                'case': case.name,
                'shape': case.shape,
                'dtype': str(dtype),
                'layout': layout,
                'result': f'failed: {type(error).__name__}: {str(error)[:300]}',
            }


def in_processes(
    jobs: int, seconds: float, function: Callable[..., dict], tasks: Sequence[tuple]
) -> list[dict]:
    """Results of ``function(*task)``; several processes share the GPU, as compiling needs CPUs.

    Tasks that have not started after ``seconds`` are left out, with a row that says so.
    """
    end, rows = time.perf_counter() + seconds, []
    if jobs <= 1:
        for task in tasks:
            rows.append(function(*task) if time.perf_counter() < end else _out_of_time(task))
        return rows
    with ProcessPoolExecutor(jobs, multiprocessing.get_context('spawn')) as pool:
        futures = [pool.submit(function, *task) for task in tasks]
        while time.perf_counter() < end and not all(each.done() for each in futures):
            time.sleep(0.2)
        for task, each in zip(tasks, futures):
            rows.append(_out_of_time(task) if each.cancel() else each.result())
    return rows


def _out_of_time(task: tuple) -> dict:
    return {'task': [str(each) for each in task], 'result': 'skipped: out of time'}


def parity(args: argparse.Namespace) -> list[dict]:
    chosen = [
        index
        for index, case in enumerate(PARITY)
        if args.filter in case.name and not (args.small and math.prod(case.shape) > 30_000)
    ]
    tasks = [
        (index, dtype, layout)
        for dtype in DTYPES
        for index in chosen
        for layout in LAYOUTS
        if dtype != torch.float16 or index % 3 == 0
    ]
    rows = in_processes(args.jobs, args.seconds, _parity_job, tasks)
    for row in rows:
        if row['result'] != 'ok':
            print(row, flush=True)
    return rows


# ---------------------------------------------------------------------------------- limits


def _row(name: str, function: Callable[[], str | None]) -> dict:
    """Result of one check: ok, or the reason that it returns or raises."""
    try:
        reason = function()
    except Exception as error:
        reason = f'{type(error).__name__}: {str(error)[:300]}'
    text = (
        'ok' if reason is None else reason if reason.startswith('skipped') else f'failed: {reason}'
    )
    print(f'{name}: {text}', flush=True)
    return {'check': name, 'result': text}


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


def other_stream(case: Case) -> str | None:
    """Work on a stream of its own gives what the default stream gives."""
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


def graph(case: Case) -> str | None:
    """A captured forward and backward pass, replayed on new values, equals the eager one."""
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


def limits(args: argparse.Namespace) -> list[dict]:
    shape = (4, 96, 28, 28)
    cases = (
        inception(shape),
        depthwise(shape, (7, 7)),
        depthwise(shape, (17, 17)),
        *(each for each in PARITY if 'RecConv' in each.name or 'operator' in each.name),
    )
    rows = [
        _row(f'large map, {layout}', lambda layout=layout: large_map(layout)) for layout in LAYOUTS
    ]
    torch.cuda.empty_cache()
    for case in cases:
        name = f'{case.name} {case.shape}'
        rows.append(_row(f'other stream, {name}', lambda case=case: other_stream(case)))
        rows.append(_row(f'CUDA graph, {name}', lambda case=case: graph(case)))
    return [*rows, _row('other device', other_device)]


# ---------------------------------------------------------------------------------- compile


def compiled_case(case: Case, dtype: torch.dtype) -> str | None:
    """One full graph, with the values of eager mode."""
    torch._dynamo.reset()
    leaves = inputs(case, dtype, torch.channels_last)
    cotangent = torch.randn_like(case.ours(*leaves) if dtype == torch.float32 else leaves[0])
    want = results(case.ours, leaves, cotangent, dtype)
    got = results(torch.compile(case.ours, fullgraph=True), leaves, cotangent, dtype)
    error = worst_error(got, [each.double() for each in want], dtype)
    return None if error <= 2 else f'error {error:.2f} of the tolerance'


def compiled_backbone(name: str) -> str | None:
    """A micro backbone in one graph, forward and backward under autocast."""
    import mmlk.backbones  # noqa: F401  fills the registry
    from mmlk.registry import MODELS

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = MODELS.build(dict(type=f'mmlk.{name}', arch=MICRO_ARCHS[name])).cuda()
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


def compiled(args: argparse.Namespace) -> list[dict]:
    shape = (2, 96, 28, 28)
    cases = (
        inception(shape),
        depthwise(shape, (7, 7)),
        depthwise(shape, (17, 17)),
        *[each for each in PARITY if 'RecConv' in each.name or 'operator' in each.name][:2],
    )
    rows = [
        _row(
            f'compile {case.name} {dtype}',
            lambda case=case, dtype=dtype: compiled_case(case, dtype),
        )
        for case in cases
        for dtype in (torch.float32, torch.bfloat16)
    ]
    if importlib.util.find_spec('mmengine') is None:
        return [*rows, {'check': 'backbones', 'result': 'skipped: mmengine is not installed'}]
    return rows + [
        _row(f'compile {name}', lambda name=name: compiled_backbone(name)) for name in MICRO_ARCHS
    ]

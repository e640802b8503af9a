"""The timing sections of `run_gpu_checks.py`: operators and whole networks.

Contestants of a case must agree before they are timed, run in turn, and read maps that a fill of a
buffer larger than the cache has evicted. The GPU is kept busy while a call is launched, so that its
events measure the GPU and not Python, whose own time is measured apart. Reported are the median and
the quartiles.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from benchmark_cases import Case
from gpu_cases import TIMED, Timed, inputs, traffic
from gpu_correctness import LAYOUTS, float32_as, results, worst_error
from gpu_runner import Task
from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d, InceptionDWConv2d, LargeKernelDWConv2d

ROUNDS = 15
CYCLES = 2e9
"""A second of any GPU's clock, rounded up: how long `torch.cuda._sleep` keeps one busy."""


def launch_seconds(function: Callable[[], object], calls: int = 5) -> float:
    """Time of the CPU for one eager call: the least of some that wait for nothing."""
    times = []
    for _ in range(calls):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return min(times)


def interleaved(
    functions: dict[str, Callable[[], object]], rounds: int = ROUNDS, evict: bool = True
) -> dict[str, list[float]]:
    """Milliseconds of every function by CUDA events, run in turn after two warm-ups each."""
    cache = torch.empty(2**28 if evict else 1, dtype=torch.int8, device='cuda')
    asleep = {}
    for name, function in functions.items():
        function()
        function()
        asleep[name] = int(2 * CYCLES * launch_seconds(function, 2))
    pairs = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            cache.zero_()
            torch.cuda._sleep(asleep[name])
            start.record()
            function()
            end.record()
            pairs[name].append((start, end))
        torch.cuda.synchronize()
    return {name: [a.elapsed_time(b) for a, b in each] for name, each in pairs.items()}


def summary(times: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(times, n=4)
    return {'median_ms': round(middle, 4), 'quartiles_ms': [round(low, 4), round(high, 4)]}


@functools.cache
def copy_bandwidth() -> float:
    """Bytes per second of a large copy, reads and writes counted."""
    source = torch.empty(2**29, dtype=torch.int8, device='cuda')
    target = torch.empty_like(source)
    times = interleaved({'copy': lambda: target.copy_(source)}, 20, evict=False)['copy']
    return 2 * source.numel() / statistics.median(times) * 1e3


def ceilings() -> dict:
    """What the device reaches at best: copies, and a product of bfloat16 matrices."""
    side = 8192
    matrix = torch.randn(side, side, device='cuda', dtype=torch.bfloat16)
    times = interleaved({'product': lambda: matrix @ matrix}, 9)['product']
    return {
        'case': 'ceilings',
        'copy_bytes_per_second': copy_bandwidth(),
        'bfloat16_flops_per_second': 2 * side**3 / statistics.median(times) * 1e3,
        'result': 'ok',
    }


def _torch_routes(cudnn: bool | None) -> contextlib.AbstractContextManager:
    """What torch's convolution may run, backward as well: cuDNN after a search, or its own kernels."""
    if cudnn is None:
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=cudnn, benchmark=cudnn, allow_tf32=False)


def contestants(
    case: Case, dtype: torch.dtype, train: bool, compiles: bool
) -> dict[str, Callable[[], list[Tensor]]]:
    # The first one is what the others are compared with.
    sides = {
        'native': (case.native, False),
        'ours': (case.ours, None),
        'cudnn': (case.native, True),
    }
    if compiles:
        sides['compiled ours'] = (torch.compile(case.ours), None)
        sides['compiled torch'] = (torch.compile(case.native), True)
    runs = {}
    for layout, form in LAYOUTS.items():
        torch.manual_seed(0)
        leaves = inputs(case, dtype, form)
        with torch.autocast('cuda', dtype, enabled=dtype != torch.float32), torch.no_grad():
            cotangent = torch.randn_like(case.ours(*leaves))
        for side, (function, cudnn) in sides.items():

            def run(function=function, cudnn=cudnn, leaves=leaves, cotangent=cotangent):
                with _torch_routes(cudnn):
                    if train:
                        return results(function, leaves, cotangent, dtype)
                    with (
                        torch.no_grad(),
                        torch.autocast('cuda', dtype, enabled=dtype != torch.float32),
                    ):
                        return [function(*leaves)]

            runs[f'{side} {layout}'] = run
    return runs


def check_first_images(case: Case, dtype: torch.dtype) -> str | None:
    """Output and gradients of the first images against float64, in both layouts."""
    small = case._replace(shape=(min(2, case.shape[0]), *case.shape[1:]))
    for layout, form in LAYOUTS.items():
        torch.manual_seed(0)
        leaves = inputs(small, dtype, form)
        wide = [each.detach().double().requires_grad_() for each in leaves]
        y = case.native(*wide)
        cotangent = torch.randn_like(y).to(dtype)
        want = [y, *torch.autograd.grad(y, wide, cotangent.double())]
        error = worst_error(results(case.ours, leaves, cotangent, dtype), want, dtype)
        if not error <= 1:
            return f'failed: {layout}, error {error:.2f} of the tolerance against float64'
    return None


def time_case(number: int, train: bool) -> dict:
    """Timings of one case of `TIMED` and mode, or the reason why they are worth nothing."""
    with float32_as(tf32=False):
        return _time_case(TIMED[number], torch.bfloat16, train, copy_bandwidth())


def _time_case(entry: Timed, dtype: torch.dtype, train: bool, bandwidth: float) -> dict:
    case = entry.case
    torch._dynamo.reset()
    row = {
        'case': case.name,
        'shape': case.shape,
        'dtype': str(dtype),
        'mode': 'train' if train else 'forward',
    }
    wrong = check_first_images(case, dtype)
    if wrong:
        return {**row, 'result': wrong}
    runs = contestants(case, dtype, train, compiles=entry.forward is not None)
    wants = {}
    for name, run in runs.items():
        layout = name.split()[-1]
        got = run()
        wants.setdefault(layout, [each.double() for each in got])
        error = worst_error(got, wants[layout], dtype)
        if error > 3:  # both sides round, and some of torch's routes sum in 16 bits
            row['disagrees'] = {**row.get('disagrees', {}), name: round(error, 2)}
    wants.clear()
    timings = {name: summary(each) for name, each in interleaved(runs).items()}

    def best(*sides: str) -> float:
        return min(
            each['median_ms']
            for name, each in timings.items()
            if any(name.startswith(side) for side in sides)
        )

    ours = best('ours')
    floor = 1e3 * traffic(case, dtype.itemsize, entry.passes, train) / bandwidth
    aim = entry.train if train else entry.forward
    row.update(
        timings=timings,
        launch_us={
            name: round(1e6 * launch_seconds(run))
            for name, run in runs.items()
            if 'compiled' not in name
        },
        ours_ms=ours,
        baseline_ms=best('native', 'cudnn'),
        gain=round(best('native', 'cudnn') / ours, 2),
        aim=aim,
        result='ok',
        memory_floor_ms=round(floor, 4),
        share_of_memory_floor=round(floor / ours, 3),
    )
    if any(name.startswith('compiled torch') for name in timings):
        row['gain_over_compiled'] = round(
            best('compiled torch') / min(ours, best('compiled ours')), 2
        )
    return row


def compile_kernels(number: int) -> dict:
    """Run a case once, which leaves its kernels in Triton's cache."""
    case = TIMED[number].case
    for form in LAYOUTS.values():
        leaves = inputs(case, torch.bfloat16, form)
        with torch.autocast('cuda', torch.bfloat16):
            y = case.ours(*leaves)
        torch.autograd.grad(y, leaves, torch.randn_like(y))
    return {'case': case.name, 'result': 'ok'}


def _chosen(args: argparse.Namespace) -> list[int]:
    return [number for number, each in enumerate(TIMED) if args.filter in each.case.name]


def kernels(args: argparse.Namespace) -> list[Task]:
    """Compiles what the timed operators launch, many at once."""
    return [
        Task(f'kernels of {TIMED[number].case.name}', compile_kernels, (number,))
        for number in _chosen(args)
    ]


def operators(args: argparse.Namespace) -> list[Task]:
    """Times of the operators next to torch's own kernels and cuDNN's."""
    return [
        Task('ceilings', ceilings),
        *(
            Task(f'{TIMED[number].case.name} {mode}', time_case, (number, mode == 'train'))
            for number in _chosen(args)
            for mode in ('forward', 'train')
        ),
    ]


def table(rows: Sequence[dict]) -> list[str]:
    """The timed operators as lines of text."""
    head = (
        f'{"case":<46}{"shape":<16}{"mode":<9}{"ours":>8}{"base":>9}{"gain":>7}{"aim":>6}'
        f'{"floor":>8}{"share":>7}{"compiled":>9}'
    )
    return [head, *(_line(row) for row in rows if 'mode' in row)]


def _line(row: dict) -> str:
    shape = 'x'.join(str(each) for each in row['shape'])
    head = f'{row["case"][:45]:<46}{shape:<16}{row["mode"]:<9}'
    if 'ours_ms' not in row:
        return head + row['result']
    return (
        f'{head}{row["ours_ms"]:8.3f}{row["baseline_ms"]:9.3f}{row["gain"]:6.2f}x'
        f'{row["aim"] or "":>6}{row["memory_floor_ms"]:8.3f}{row["share_of_memory_floor"]:7.0%}'
        f'{row.get("gain_over_compiled", ""):>9}'
    )


# ---------------------------------------------------------------------------------- networks


class _PlainLargeKernel(LargeKernelDWConv2d):
    """Branches by torch's convolution, as the authors write them."""

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self.children())


def _inception(timm, ours: bool) -> nn.Module:
    """timm's InceptionNeXt-T; ours has its token mixers replaced, with the same weights."""
    model = timm.create_model('inception_next_tiny')
    for module in [each for each in model.modules() if ours]:
        for name, child in module.named_children():
            if type(child).__name__ == 'InceptionDWConv2d':
                mixer = InceptionDWConv2d(sum(child.split_indexes))
                mixer.load_state_dict(child.state_dict())
                setattr(module, name, mixer)
    return model


def _convnext(timm, replace: Callable[[int, int], nn.Module]) -> nn.Module:
    """timm's ConvNeXt-T with its 7x7 convolutions replaced; ``replace`` gets channels and stage."""
    model = timm.create_model('convnext_tiny')
    for index, stage in enumerate(model.stages):
        for block in stage.blocks:
            block.conv_dw = replace(block.conv_dw.in_channels, index)
    return model


def _pairs(timm) -> dict[str, tuple]:
    """Name -> ours, plain torch, aimed gain in training, whether torch.compile is timed as well."""

    def plain_dw(size: int) -> Callable[[int, int], nn.Module]:
        return lambda c, stage: nn.Conv2d(c, c, size, padding=size // 2, groups=c)

    long = (51, 49, 47, 13)
    return {
        'InceptionNeXt-T (timm)': (
            lambda: _inception(timm, True),
            lambda: _inception(timm, False),
            1.25,
            True,
        ),
        'ConvNeXt-T with 17x17 (as DCLS)': (
            lambda: _convnext(timm, lambda c, stage: DepthwiseConv2d(c, 17)),
            lambda: _convnext(timm, plain_dw(17)),
            2.0,
            False,
        ),
        'ConvNeXt-T with 51x5 + 5x51 + 5x5 (as SLaK)': (
            lambda: _convnext(timm, lambda c, stage: LargeKernelDWConv2d(c, long[stage])),
            lambda: _convnext(timm, lambda c, stage: _PlainLargeKernel(c, long[stage])),
            3.0,
            False,
        ),
        'ConvNeXt-T (7x7)': (
            lambda: _convnext(timm, lambda c, stage: DepthwiseConv2d(c, 7)),
            lambda: timm.create_model('convnext_tiny'),
            None,
            False,
        ),
    }


def _step(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    def run():
        model.zero_grad(set_to_none=True)
        with torch.autocast('cuda', torch.bfloat16):
            loss = model(images).float().square().mean()
        loss.backward()
        return loss.detach()

    return run


def _network(
    name: str, ours: Callable, plain: Callable, aim: float | None, compiles: bool, batch: int
) -> dict:
    torch._dynamo.reset()
    torch.manual_seed(0)
    images = torch.randn(batch, 3, 224, 224, device='cuda')
    first, second = ours().cuda(), plain().cuda()
    second.load_state_dict(first.state_dict())
    runs = {}
    for layout, form in LAYOUTS.items():
        x = images.contiguous(memory_format=form)
        for side, model in (('ours', first), ('plain', second)):
            runs[f'{side} {layout}'] = _step(model, x)
    x = images.contiguous(memory_format=torch.channels_last)
    for side, model in (('compiled ours', first), ('compiled plain', second)) if compiles else ():
        runs[f'{side} channels_last'] = _step(torch.compile(model), x)
    losses = {side: run().item() for side, run in runs.items()}
    reference = losses['plain contiguous']
    if any(abs(each - reference) > 0.05 * abs(reference) for each in losses.values()):
        return {'network': name, 'losses': losses, 'result': 'failed: losses differ'}
    times = {side: summary(each) for side, each in interleaved(runs, 8, evict=False).items()}
    rates = {side: round(1e3 * batch / each['median_ms'], 1) for side, each in times.items()}

    def best(side: str) -> float:
        return max(rate for key, rate in rates.items() if key.startswith(side))

    row = {
        'network': name,
        'batch': batch,
        'images_per_second': rates,
        'timings': times,
        'gain': round(best('ours') / best('plain'), 2),
        'aim': aim,
        'result': 'ok',
    }
    if compiles:
        row['gain_over_compiled'] = round(
            max(best('ours'), best('compiled ours')) / best('compiled plain'), 2
        )
    return row


def time_network(name: str, batch: int) -> dict:
    """One network of `_pairs`, training."""
    import timm

    torch.backends.cudnn.benchmark = True
    return _network(name, *_pairs(timm)[name], batch)


def networks(args: argparse.Namespace) -> list[Task]:
    """Training steps of timm's networks with our operators in them."""
    if importlib.util.find_spec('timm') is None:
        return []
    import timm

    return [
        Task(name, time_network, (name, args.batch)) for name in _pairs(timm) if args.filter in name
    ]

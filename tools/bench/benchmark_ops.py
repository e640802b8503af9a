"""Time the operators against the same composition of ``F.conv2d``, in both memory layouts.

Every case is verified before it is timed. The contestants of a case run in turn within one process,
so a slow spell of the machine hits all of them; medians and quartiles are reported, with the share
of the GEMM and copy rates that this machine showed in the same run.

    python tools/bench/benchmark_ops.py                             # the table of docs/benchmarks.md
    python tools/bench/benchmark_ops.py --family slak --size 512    # stage maps of one family
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark_cases import FAMILIES, SIZES, Case, family_cases, table_cases  # noqa: E402

LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
TOLERANCE = 1e-4  # of the largest magnitude, float32 on both sides


CLOCKS = {'wall': time.perf_counter, 'cpu': time.thread_time}


def interleaved(
    functions: dict[str, Callable[[], object]], seconds: float, clock: str = 'wall', least: int = 3
) -> dict[str, list[float]]:
    """Durations in ms of each function, run in turn for about ``seconds`` after one warm-up."""
    now = CLOCKS[clock]
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, function in functions.items():
            start = now()
            function()
            times[name].append(1e3 * (now() - start))
    return times


def ceilings(clock: str) -> dict[str, float]:
    """This machine's rates: float32 matrix product (GF/s) and tensor copy (GB/s)."""
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    out = torch.empty_like(a)
    source = torch.randn(1 << 24)
    target = torch.empty_like(source)
    times = interleaved(
        {'gemm': lambda: torch.mm(a, b, out=out), 'copy': lambda: target.copy_(source)}, 2.0, clock
    )
    return {
        'gemm_gflops': 2 * 1536**3 / min(times['gemm']) / 1e6,
        'copy_gbytes': 2 * 4 * (1 << 24) / min(times['copy']) / 1e6,
    }


def device() -> dict[str, str | int]:
    """What was measured on."""
    model = platform.processor()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            names = [line.split(':')[1].strip() for line in file if line.startswith('model name')]
        model = names[0] if names else model
    return {
        'cpu': model,
        'capability': torch.backends.cpu.get_cpu_capability(),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'python': platform.python_version(),
        'load': round(os.getloadavg()[0], 2),
    }


def tensors(case: Case, layout: str) -> list[torch.Tensor]:
    """Leaves of ``case`` with the map in ``layout``."""
    torch.manual_seed(0)
    x, *parameters = case.inputs()
    return [
        each.requires_grad_() for each in (x.contiguous(memory_format=LAYOUTS[layout]), *parameters)
    ]


def step(
    function: Callable, leaves: Sequence[torch.Tensor], cotangent: torch.Tensor | None
) -> Callable:
    """One timed call: forward without gradients, or forward and backward."""
    if cotangent is None:

        def run():
            with torch.no_grad():
                return [function(*leaves)]
    else:

        def run():
            out = function(*leaves)
            return [out, *torch.autograd.grad(out, leaves, cotangent)]

    return run


def verify(case: Case, runs: dict[str, Callable]) -> None:
    """Every contestant's results against the first one's.

    Raises:
        RuntimeError: if a result differs; a wrong contestant is not timed.
    """
    want = None
    for name, run in runs.items():
        got = run()
        want = want or got
        for index, (mine, theirs) in enumerate(zip(got, want)):
            error = (mine - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6)
            if not error <= TOLERANCE:
                raise RuntimeError(
                    f'benchmark_ops: {case.name} on {case.shape}: result {index} of '
                    f'{name!r} is off by {error:.1e}; it is not timed'
                )


def measure(case: Case, train: bool, args: argparse.Namespace) -> dict:
    """Timings of all contestants of one case."""
    runs = {}
    for layout in LAYOUTS:
        leaves = tensors(case, layout)
        cotangent = torch.randn_like(case.native(*leaves)) if train else None
        for side, function in (('native', case.native), ('ours', case.ours)):
            runs[f'{side} {layout}'] = step(function, leaves, cotangent)
            if args.compile:
                runs[f'{side} {layout} compiled'] = step(torch.compile(function), leaves, cotangent)
    layout_of = {name: name.split()[1] for name in runs}
    for layout in LAYOUTS:
        verify(case, {name: run for name, run in runs.items() if layout_of[name] == layout})
    times = interleaved(runs, args.seconds, args.clock)
    return {
        name: {
            'median_ms': statistics.median(each),
            'min_ms': min(each),
            'quartiles_ms': statistics.quantiles(each, n=4)[::2],
            'runs': len(each),
        }
        for name, each in times.items()
    }


def summarise(case: Case, train: bool, results: dict, rates: dict, statistic: str) -> dict:
    """Ratios, and the best of ours against the machine's rates."""
    key = f'{statistic}_ms'
    best = {
        side: min(value[key] for name, value in results.items() if name.startswith(side))
        for side in ('native', 'ours')
    }
    flops = case.flops * (3 if train else 1)
    maps = 4 * torch.Size(case.shape).numel() * (5 if train else 2)
    gflops, gbytes = flops / best['ours'] / 1e6, maps / best['ours'] / 1e6
    return {
        'case': case.name,
        'shape': case.shape,
        'mode': 'train' if train else 'forward',
        'results': results,
        'gain_over_better_native': best['native'] / best['ours'],
        'gain_same_layout': {
            layout: results[f'native {layout}'][key] / results[f'ours {layout}'][key]
            for layout in LAYOUTS
        },
        'gflops': gflops,
        'share_of_gemm': gflops / rates['gemm_gflops'],
        'gbytes': gbytes,
        'share_of_copy': gbytes / rates['copy_gbytes'],
    }


def line(row: dict) -> str:
    """One row of the printed table."""

    def cell(name):
        value = row['results'][name]
        low, high = value['quartiles_ms']
        return f'{value["min_ms"]:.2f} {value["median_ms"]:.2f} [{low:.2f}-{high:.2f}]'

    shape = 'x'.join(str(each) for each in row['shape'])
    same = row['gain_same_layout']
    cells = '  '.join(f'{cell(name):>32}' for name in row['results'])
    return (
        f'{row["case"]:<28} {shape:<15} {row["mode"]:<8} {cells}  '
        f'{row["gain_over_better_native"]:6.2f}x  {same["contiguous"]:6.2f}x '
        f'{same["channels_last"]:6.2f}x  '
        f'{row["gflops"]:6.1f} GF/s {row["share_of_gemm"]:4.0%}  '
        f'{row["gbytes"]:5.1f} GB/s {row["share_of_copy"]:4.0%}'
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--family',
        choices=FAMILIES,
        nargs='+',
        default=[],
        help='stage maps of these families instead of the table',
    )
    parser.add_argument(
        '--size', choices=SIZES, nargs='+', default=['224'], help='image sizes for --family'
    )
    parser.add_argument('--mode', choices=('forward', 'train', 'both'), default='train')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--seconds', type=float, default=3.0, help='time per case')
    parser.add_argument(
        '--statistic',
        choices=('median', 'min'),
        default='median',
        help='which one the gains are computed from',
    )
    parser.add_argument(
        '--clock',
        choices=CLOCKS,
        default='wall',
        help="'cpu' is this thread's processor time: for a busy machine and one thread only",
    )
    parser.add_argument('--filter', default='', help='only cases whose name holds this text')
    parser.add_argument('--compile', action='store_true', help='time torch.compile of both as well')
    parser.add_argument('--out', type=Path, help='write all numbers to this JSON file')
    args = parser.parse_args(arguments)
    if args.clock == 'cpu' and args.threads != 1:
        parser.error('--clock cpu sees one thread only, use --threads 1')
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    about, rates = device(), ceilings(args.clock)
    print('  '.join(f'{key} {value}' for key, value in about.items()))
    print(
        f'GEMM {rates["gemm_gflops"]:.0f} GF/s  copy {rates["copy_gbytes"]:.1f} GB/s; '
        'minimum, median [quartiles] in ms; gains over the better native, contiguous, channels-last'
    )
    cases = [
        case for family in args.family for size in args.size for case in family_cases(family, size)
    ] or table_cases()
    rows = []
    for case in (case for case in cases if args.filter in case.name):
        for train in {'forward': (False,), 'train': (True,), 'both': (False, True)}[args.mode]:
            row = summarise(case, train, measure(case, train, args), rates, args.statistic)
            if not rows:
                print(' ' * 53 + '  '.join(f'{name:>32}' for name in row['results']))
            rows.append(row)
            print(line(row), flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({'device': about, 'rates': rates, 'rows': rows}, indent=1))
        print(f'written to {args.out}')


if __name__ == '__main__':
    main()

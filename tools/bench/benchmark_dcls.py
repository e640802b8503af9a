"""Time DCLS kernel construction, forward and backward, against the published way of doing it.

The published way builds a grid of (window x elements) cells. ``--package`` names a folder in which the
DCLS package is installed (``pip install --target FOLDER --no-deps DCLS``) whose construction is then the
rival; without it a restatement of the same grid is. Whole networks are compared by
``tools/bench/benchmark_models.py DCLSConvNeXt --rival rivals:dcls_convnext``.

Results are compared before anything is timed. The contestants take turns of three calls in one
process. The first call of a turn finds caches and allocator as the other contestant left them, and pays
for giving back its memory; ratios of those calls are reported apart from those of the others.

    python tools/bench/benchmark_dcls.py --package /tmp/dcls --threads 1 --clock cpu
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark_ops import CLOCKS, device  # noqa: E402
from rival_dcls import dcls_grid_kernel, dcls_package_kernel  # noqa: E402

from mmlk.ops import dcls_kernel2d, dcls_kernel2d_reference  # noqa: E402

VERSIONS = ('v0', 'v1', 'max', 'gauss')
WINDOW, COUNT = 17, 34
TOLERANCE = 1e-4  # of the largest magnitude, float32 on both sides
CALLS = 3


def restated_grid(
    weight: Tensor, positions: Tensor, sigma: Tensor | None, size: int, version: str
) -> Tensor:
    """The published grid in our words."""
    if version == 'v0':
        return dcls_grid_kernel(weight, positions, size)
    return dcls_kernel2d_reference(weight, positions, sigma, kernel_size=size, version=version)


def check(name: str, got: Tensor, want: Tensor) -> None:
    error = ((got - want).abs().max() / want.abs().max()).item()
    if not error <= TOLERANCE:
        raise RuntimeError(f'benchmark_dcls: {name} differs by {error:.1e}; it is not timed')


def peak_megabytes(function: Callable[[], object]) -> float:
    """Largest amount allocated at any time during one call."""
    function()
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    held = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == '[memory]']
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6


def take_turns(
    runs: dict[str, Callable[[], object]], seconds: float, clock: str
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Durations in ms of the first call of every turn, and of the others."""
    now = CLOCKS[clock]
    first, later = ({name: [] for name in runs} for _ in range(2))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(first['ours']) < 2:
        for name, run in runs.items():
            for call in range(CALLS):
                start = now()
                run()
                (later if call else first)[name].append(1e3 * (now() - start))
    return first, later


def construction(
    construct: Callable[..., Tensor], version: str, channels: int, seconds: float, clock: str
) -> dict:
    """One row: forward and backward of the construction alone."""
    torch.manual_seed(0)
    weight, positions = torch.randn(channels, 1, COUNT), torch.randn(2, channels, 1, COUNT) * 3
    inputs = [weight, positions.clamp(-8, 8)]
    inputs += [torch.rand_like(positions)] if version in ('max', 'gauss') else []
    inputs = [each.requires_grad_() for each in inputs]
    sigma = inputs[2] if len(inputs) == 3 else None
    cotangent = torch.randn(channels, 1, WINDOW, WINDOW)
    runs = dict(
        published=lambda: torch.autograd.grad(
            construct(*inputs[:2], sigma, WINDOW, version), inputs, cotangent
        ),
        ours=lambda: torch.autograd.grad(
            dcls_kernel2d(*inputs, kernel_size=WINDOW, version=version), inputs, cotangent
        ),
    )
    for i, (got, want) in enumerate(zip(runs['ours'](), runs['published']())):
        check(f'{version} gradient {i}', got, want)
    row = dict(version=version, channels=channels, elements=COUNT, window=WINDOW)
    row.update({f'{name}_mb': peak_megabytes(run) for name, run in runs.items()})
    first, later = take_turns(runs, seconds, clock)
    for name in runs:
        row[f'{name}_ms'] = statistics.median(later[name])
        row[f'{name}_min_ms'] = min(later[name])
        row[f'{name}_first_ms'] = statistics.median(first[name])
    return row


def ratio(row: dict, what: str) -> float:
    return row[f'published_{what}'] / row[f'ours_{what}']


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--package', help='folder with the DCLS package')
    parser.add_argument('--versions', choices=VERSIONS, nargs='+', default=list(VERSIONS))
    parser.add_argument('--channels', type=int, nargs='+', default=[96, 384, 768])
    parser.add_argument('--seconds', type=float, default=6.0, help='per row')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument(
        '--clock',
        choices=sorted(CLOCKS),
        default='wall',
        help='cpu with --threads 1 on a machine that is busy with other work',
    )
    parser.add_argument('--out', type=Path, help='write all numbers to this JSON file')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    construct = dcls_package_kernel(args.package) if args.package else restated_grid
    about = device()
    print(', '.join(f'{key} {value}' for key, value in about.items()))
    print(
        f'{args.clock} time; rival: {"DCLS package" if args.package else "restated dense grid"}\n'
    )
    print(
        '| version | channels | published ms | ours ms | medians | minima | first calls | '
        'published MB | ours MB | ratio |\n|---|---|---|---|---|---|---|---|---|---|'
    )
    rows = []
    for version in args.versions:
        for channels in args.channels:
            row = construction(construct, version, channels, args.seconds, args.clock)
            rows.append(row)
            print(
                f'| {version} | {channels} | {row["published_ms"]:.1f} | {row["ours_ms"]:.2f} | '
                f'{ratio(row, "ms"):.0f}x | {ratio(row, "min_ms"):.0f}x | '
                f'{ratio(row, "first_ms"):.0f}x | {row["published_mb"]:.1f} | '
                f'{row["ours_mb"]:.2f} | {ratio(row, "mb"):.0f}x |',
                flush=True,
            )
    if args.out:
        settings = dict(
            rival='DCLS package' if args.package else 'restated grid',
            threads=args.threads,
            clock=args.clock,
        )
        args.out.write_text(json.dumps(dict(device=about, settings=settings, rows=rows), indent=1))


if __name__ == '__main__':
    main()

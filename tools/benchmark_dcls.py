"""Time DCLS kernel construction and the whole backbone against the published way of doing it.

The published way builds a grid of (window x elements) cells for every layer in every forward pass and
convolves with ``F.conv2d``. ``--package`` names a folder in which the DCLS package is installed
(``pip install --target FOLDER --no-deps DCLS``) whose construction is then the rival; without it a
restatement of the same grid is. In the network comparison everything but the depthwise layer is this
package's on both sides, and the rival runs in the faster of the two memory layouts.

Results are compared before anything is timed, and the contestants run in turn in one process.

    python tools/benchmark_dcls.py --package /tmp/dcls
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark_ops import CLOCKS, device, interleaved  # noqa: E402

from mmlk.backbones import DCLSConvNeXt  # noqa: E402
from mmlk.ops import dcls_kernel2d  # noqa: E402

WINDOW, COUNT = 17, 34
TOLERANCE = 1e-4  # of the largest magnitude, float32 on both sides


def dense_grid(weight: Tensor, positions: Tensor) -> Tensor:
    """The published ``v0`` construction restated: four indicator planes over the whole grid."""
    p = positions + WINDOW // 2
    lower = p.detach().floor()
    r0, r1 = p - lower
    cells = torch.arange(WINDOW)
    rows, columns = cells.view(-1, 1, 1, 1, 1), cells.view(1, -1, 1, 1, 1)
    planes = [
        torch.where((rows == lower[0] + i) * (columns == lower[1] + j), 1.0, 0.0)
        for i in (0, 1) for j in (0, 1)
    ]
    spread = planes[0] + r0 * r1 * (planes[0] - planes[1] - planes[2] + planes[3]) \
        + r0 * (planes[2] - planes[0]) + r1 * (planes[1] - planes[0])
    return (weight * spread).sum(4).permute(2, 3, 0, 1)


def package_grid(folder: str):
    """Construction of the installed package, by channels and version."""
    sys.path.append(folder)
    logging.disable(logging.WARNING)
    from DCLS.construct.modules import ConstructKernel2d
    built = {}

    def construct(weight, positions, sigma=None, version='v0'):
        channels, _, count = weight.shape
        key = (channels, count, version)
        if key not in built:
            built[key] = ConstructKernel2d(
                channels, channels, channels, count, (WINDOW, WINDOW), version)
        return built[key](weight, positions, sigma)

    return construct


class PublishedLayer(nn.Module):
    """Depthwise layer that constructs in every forward pass, with the parameters of another."""

    def __init__(self, layer, construct):
        super().__init__()
        self.layer, self.construct = layer, construct

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.construct(self.layer.weight, self.layer.P)
        return F.conv2d(x, kernel, self.layer.bias, 1, WINDOW // 2, 1, x.shape[1])


def check(name: str, got: Tensor, want: Tensor) -> None:
    error = ((got - want).abs().max() / want.abs().max()).item()
    if not error <= TOLERANCE:
        raise RuntimeError(f'benchmark_dcls: {name} differs by {error:.1e}; it is not timed')


def peak_megabytes(function) -> float:
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


def construction(construct, version: str, channels: int, seconds: float, clock: str) -> str:
    """One row: forward and backward of the construction alone."""
    torch.manual_seed(0)
    weight, positions = torch.randn(channels, 1, COUNT), torch.randn(2, channels, 1, COUNT) * 3
    inputs = [weight, positions.clamp(-8, 8)]
    inputs += [torch.rand_like(positions)] if version in ('max', 'gauss') else []
    inputs = [each.requires_grad_() for each in inputs]
    cotangent = torch.randn(channels, 1, WINDOW, WINDOW)
    extra = {} if version == 'v0' else dict(version=version)
    runs = dict(
        published=lambda: torch.autograd.grad(construct(*inputs, **extra), inputs, cotangent),
        ours=lambda: torch.autograd.grad(
            dcls_kernel2d(*inputs, kernel_size=WINDOW, version=version), inputs, cotangent))
    for i, (got, want) in enumerate(zip(runs['ours'](), runs['published']())):
        check(f'{version} gradient {i}', got, want)
    memory = {name: peak_megabytes(run) for name, run in runs.items()}
    times = interleaved(runs, seconds, clock)
    theirs, ours = (statistics.median(times[name]) for name in ('published', 'ours'))
    best = min(times['published']) / min(times['ours'])
    return (f'| {version} | {channels} x {COUNT} | {theirs:.1f} | {ours:.2f} | {theirs / ours:.0f} | '
            f'{best:.0f} | {memory["published"]:.1f} | {memory["ours"]:.2f} | '
            f'{memory["published"] / memory["ours"]:.1f} |')


def published_network(ours: DCLSConvNeXt, construct) -> DCLSConvNeXt:
    """The same network with published depthwise layers; its positions stay shared."""
    theirs = copy.deepcopy(ours)
    for stage in theirs.stages:
        for block in stage:
            block.dwconv = PublishedLayer(block.dwconv, construct)
    return theirs


def network(construct, size: int, batch: int, seconds: float, clock: str) -> list[str]:
    """Rows of training step (forward and backward) and inference of ConvNeXt-T-dcls."""
    torch.manual_seed(0)
    ours = DCLSConvNeXt('tiny', output_norm=False, layer_scale_init=1.0)
    theirs = published_network(ours, construct)
    deployed = copy.deepcopy(ours).switch_to_deploy()
    images = torch.randn(batch, 3, size, size)
    last = images.contiguous(memory_format=torch.channels_last)

    def infer(model, x):
        with torch.no_grad():
            return model(x)[-1]

    def train(model, x):
        model.zero_grad()
        output = model(x)[-1]
        output.sum().backward()
        return model.stages[0][0].pwconv1.weight.grad

    rows = []
    for name, run, switch in (('training step', train, True), ('inference', infer, False)):
        for model in (ours, theirs):
            model.train(switch)
        runs = {'published contiguous': lambda run=run: run(theirs, images),
                'published channels_last': lambda run=run: run(theirs, last),
                'ours': lambda run=run: run(ours, images)}
        if not switch:
            runs['ours deployed'] = lambda run=run: run(deployed, images)
        want = runs['published contiguous']()
        for contestant, each in runs.items():
            check(f'{name} of {contestant}', each(), want)
        times = interleaved(runs, seconds, clock)
        medians = {key: statistics.median(value) for key, value in times.items()}
        better = min((key for key in times if key.startswith('published')), key=medians.get)
        rows += [
            f'| {name} | {better} | {medians[better]:.0f} | {key} | {medians[key]:.0f} | '
            f'{medians[better] / medians[key]:.1f} | {min(times[better]) / min(times[key]):.1f} |'
            for key in times if key.startswith('ours')]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--package', help='folder with the DCLS package')
    parser.add_argument('--channels', type=int, nargs='+', default=[96, 384, 768])
    parser.add_argument('--size', type=int, default=160, help='image side of the network runs')
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--seconds', type=float, default=6.0, help='per row; network rows take 5x')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--clock', choices=sorted(CLOCKS), default='wall',
                        help='cpu with --threads 1 on a machine that is busy with other work')
    parser.add_argument('--only', choices=['construction', 'network'])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    construct = package_grid(args.package) if args.package else dense_grid
    versions = ('v0', 'v1', 'max', 'gauss') if args.package else ('v0',)
    print(', '.join(f'{key} {value}' for key, value in device().items()))
    print(f'{args.clock} time; rival: {"DCLS package" if args.package else "restated dense grid"}')
    if args.only != 'network':
        print('\n| version | channels | published ms | ours ms | ratio of medians | of minima | '
              'published MB | ours MB | ratio |\n|---|---|---|---|---|---|---|---|---|')
        for version in versions:
            for channels in args.channels:
                print(construction(construct, version, channels, args.seconds,
                                   args.clock), flush=True)
    if args.only != 'construction':
        print(f'\n{args.batch} x 3 x {args.size} x {args.size}\n\n| run | rival | ms | ours | ms | '
              'ratio of medians | of minima |\n|---|---|---|---|---|---|---|')
        print('\n'.join(network(construct, args.size, args.batch, 5 * args.seconds,
                                args.clock)))


if __name__ == '__main__':
    main()
